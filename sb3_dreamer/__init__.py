"""DreamerV3 as a first-class Stable-Baselines3 algorithm."""

import os
import sys
from pathlib import Path

from sb3_dreamer.common.envs import register_envs
from sb3_dreamer.common.launch import is_launched
from sb3_dreamer.dreamerv3 import DreamerPolicy, DreamerV3

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

register_envs()
# Where RL Zoo imports us, the algorithm may be another one, and ours gets a folder of its own from `zoo/ranks.py`.
if is_launched() and os.environ["RANK"] != "0" and "rl_zoo3" not in sys.modules:
    from sb3_dreamer.common.distributed import leave_files_to_main_rank

    leave_files_to_main_rank()

__all__ = ["DreamerPolicy", "DreamerV3", "__version__"]
