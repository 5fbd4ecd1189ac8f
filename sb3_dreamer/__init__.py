"""DreamerV3 as a first-class Stable-Baselines3 algorithm."""

import os
from pathlib import Path

from sb3_dreamer.common.distributed.launch import is_launched, is_zoo
from sb3_dreamer.common.env_checker import explain_spaces
from sb3_dreamer.common.envs import register_envs
from sb3_dreamer.dreamerv3 import DreamerPolicy, DreamerV3
from sb3_dreamer.presets import preset
from sb3_dreamer.world_model_audit import audit_world_model

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

register_envs()
explain_spaces()
# RL Zoo's commands import this package for every algorithm, so there `zoo/ranks.py` separates the files of the ranks.
if is_launched() and os.environ["RANK"] != "0" and not is_zoo():
    from sb3_dreamer.common.distributed.sb3_files import leave_files_to_main_rank

    leave_files_to_main_rank()

__all__ = ["DreamerPolicy", "DreamerV3", "__version__", "audit_world_model", "preset"]
