"""Small environments with known optimal returns, registered with gymnasium when ``sb3_dreamer`` is imported."""

from gymnasium.envs.registration import register

from sb3_dreamer.common.envs.counter import CounterEnv
from sb3_dreamer.common.envs.pixel_catch import PixelCatchEnv
from sb3_dreamer.common.envs.pixel_reach import PixelReachEnv
from sb3_dreamer.common.envs.t_maze import TMazeEnv

__all__ = ["CounterEnv", "PixelCatchEnv", "PixelReachEnv", "TMazeEnv", "register_envs"]


def register_envs() -> None:
    """Register the environments. Their options are keyword arguments of ``gymnasium.make``."""
    here = "sb3_dreamer.common.envs"
    register("sb3_dreamer/PixelCatch-v0", f"{here}.pixel_catch:PixelCatchEnv")
    register("sb3_dreamer/PixelReach-v0", f"{here}.pixel_reach:PixelReachEnv")
    register("sb3_dreamer/Counter-v0", f"{here}.counter:CounterEnv")
    register("sb3_dreamer/TMaze-v0", f"{here}.t_maze:TMazeEnv")
    # Variants with other options have their own ids, so that each can have a preset.
    register("sb3_dreamer/PixelCatch16-v0", f"{here}.pixel_catch:PixelCatchEnv", kwargs=dict(image_size=16))
    register("sb3_dreamer/PixelReachDict-v0", f"{here}.pixel_reach:PixelReachEnv", kwargs=dict(observations="dict"))
    register("sb3_dreamer/TMaze10-v0", f"{here}.t_maze:TMazeEnv", kwargs=dict(length=10))
    # Environments of other packages, for the same reason. They are only imported by `gymnasium.make`.
    register("sb3_dreamer/Crafter-v0", entry_point=f"{here}.crafter:CrafterEnv")
    frozen_lake = "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv"
    for name, desc, steps in (("2x2", ["SF", "HG"], 100), ("4x4", None, 100), ("8x8", None, 200)):
        kwargs = dict(map_name=name) if desc is None else dict(desc=desc)
        register(
            f"sb3_dreamer/FrozenLake{name}-v0",
            entry_point=frozen_lake,
            kwargs=dict(is_slippery=False, **kwargs),
            max_episode_steps=steps,
        )
