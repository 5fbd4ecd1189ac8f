"""Small worlds with known answers, registered with gymnasium when ``sb3_dreamer`` is imported."""

from gymnasium.envs.registration import register

from sb3_dreamer.common.envs.counter import CounterEnv
from sb3_dreamer.common.envs.pixel_catch import PixelCatchEnv
from sb3_dreamer.common.envs.t_maze import TMazeEnv

__all__ = ["CounterEnv", "PixelCatchEnv", "TMazeEnv", "register_envs"]


def register_envs() -> None:
    """Make the worlds known to gymnasium, with their options as keyword arguments of ``gymnasium.make``."""
    register("sb3_dreamer/PixelCatch-v0", entry_point="sb3_dreamer.common.envs.pixel_catch:PixelCatchEnv")
    register("sb3_dreamer/Counter-v0", entry_point="sb3_dreamer.common.envs.counter:CounterEnv")
    register("sb3_dreamer/TMaze-v0", entry_point="sb3_dreamer.common.envs.t_maze:TMazeEnv")
