"""DreamerV3 as a first-class Stable-Baselines3 algorithm."""

from pathlib import Path

from sb3_dreamer.common.envs import register_envs
from sb3_dreamer.dreamerv3 import DreamerPolicy, DreamerV3

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

register_envs()

__all__ = ["DreamerPolicy", "DreamerV3", "__version__"]
