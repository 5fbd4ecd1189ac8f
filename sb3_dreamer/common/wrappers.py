"""
Wrappers for the presets (``env_wrapper``) that gymnasium does not have.

Functions that need other arguments of ``gymnasium.make`` make the environment again (:func:`remake`), so that one line of
YAML is enough for training, evaluation and all commands of RL Zoo.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AddRenderObservation, AtariPreprocessing, ResizeObservation
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer.common.envs.crafter import CrafterEnv

__all__ = [
    "ActionRepeat",
    "CodesToClasses",
    "CrafterEnv",
    "TupleToDict",
    "atari",
    "dm_control_pixels",
    "flappy_bird_frames",
    "remake",
]


def remake(env: gym.Env, **kwargs: Any) -> gym.Env:
    """
    Make an environment again with other arguments, and keep its ``Monitor``.

    :param env: environment made by ``gymnasium.make``, without wrappers other than a ``Monitor``
    :param kwargs: arguments of ``gymnasium.make``
    :return: the new environment
    :raises ValueError: if the environment was not made by ``gymnasium.make``
    """
    inner = env.env if isinstance(env, Monitor) else env
    if inner.spec is None:
        raise ValueError(f"The environment must come from `gymnasium.make`, because it is made again with {kwargs}; got {env}")
    made = gym.make(inner.spec, **kwargs)
    inner.close()
    if not isinstance(env, Monitor):
        return made
    env.env = made
    env._cached_spec = None  # otherwise gymnasium would still return the old one
    return env


class ActionRepeat(gym.Wrapper):
    """
    Repeat each action several times and sum the rewards. The repetition stops when the episode ends.

    :param env: environment
    :param repeat: number of repetitions
    :raises ValueError: if ``repeat`` is below 1
    """

    def __init__(self, env: gym.Env, repeat: int = 2):
        super().__init__(env)
        if repeat < 1:
            raise ValueError(f"`repeat` must be at least 1, got {repeat}")
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """:return: the last observation and flags, the sum of the rewards"""
        total, terminated, truncated = 0.0, False, False
        for _ in range(self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def atari(
    env: gym.Env, screen_size: int = 64, grayscale: bool = False, sticky: float = 0.0, full_action_space: bool = False
) -> gym.Env:
    """
    Atari preprocessing of DreamerV3: 4 frames per action, the maximum of the last two frames, up to 30 no-ops at the start.
    Lives are ignored and rewards unchanged. The defaults are those of the Atari100k protocol.

    :param env: an ``ALE/...-v5`` environment
    :param screen_size: height and width in pixels
    :param grayscale: one channel instead of three
    :param sticky: probability of repeating the previous action
    :param full_action_space: use all 18 actions instead of those that the game needs
    :return: images (screen_size, screen_size, 3 or 1)
    """
    raw = remake(env, frameskip=1, repeat_action_probability=sticky, full_action_space=full_action_space)
    return AtariPreprocessing(
        raw,
        noop_max=30,
        frame_skip=4,
        screen_size=screen_size,
        terminal_on_life_loss=False,
        grayscale_obs=grayscale,
        grayscale_newaxis=grayscale,
    )


def dm_control_pixels(env: gym.Env, size: int = 64, camera_id: int | None = None) -> gym.Env:
    """
    Replace the observations of dm_control by images.

    :param env: a ``dm_control/...`` environment of shimmy
    :param size: height and width in pixels
    :param camera_id: camera; None: 2 for the quadruped and 0 for all others, as in the published runs
    :return: images (size, size, 3)
    """
    if camera_id is None:
        spec = env.unwrapped.spec
        camera_id = 2 if spec is not None and "quadruped" in spec.id else 0
    render_kwargs = dict(width=size, height=size, camera_id=camera_id)
    return AddRenderObservation(remake(env, render_mode="rgb_array", render_kwargs=render_kwargs))


def flappy_bird_frames(env: gym.Env, size: int = 64) -> gym.Env:
    """
    Replace the observations of FlappyBird by images.

    :param env: ``FlappyBird-v0``
    :param size: height and width in pixels
    :return: images (size, size, 3)
    """
    frames = AddRenderObservation(remake(env, render_mode="rgb_array", use_lidar=False))
    return ResizeObservation(frames, (size, size))


class TupleToDict(gym.ObservationWrapper):
    """
    Convert Tuple observations to a Dict with the keys ``"0"``, ``"1"``, ..., because SB3 does not support Tuple.

    :param env: environment with Tuple observations
    :raises ValueError: if the observations are not a Tuple
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        if not isinstance(env.observation_space, spaces.Tuple):
            raise ValueError(f"`TupleToDict` needs a Tuple of observations, got {env.observation_space}")
        self.observation_space = spaces.Dict({str(i): space for i, space in enumerate(env.observation_space.spaces)})

    def observation(self, observation: tuple[Any, ...]) -> dict[str, Any]:
        """:return: the parts by position"""
        return {str(i): part for i, part in enumerate(observation)}


class CodesToClasses(gym.ObservationWrapper):
    """
    Convert a grid of codes (as in MiniGrid, 7x7x3) to classes: the model then reads one-hots and reconstructs classes. In an
    image, the codes 1 and 2 would have almost the same brightness.

    :param env: environment with integer observations of any shape, starting at 0
    :param classes: number of codes, the same for all elements
    :raises ValueError: if the observations are not a Box of integers, or ``classes`` is below 2
    """

    def __init__(self, env: gym.Env, classes: int):
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.integer):
            raise ValueError(f"`CodesToClasses` needs a Box of whole numbers, got {space}")
        if classes < 2:
            raise ValueError(f"`classes` must be at least 2, got {classes}")
        self.observation_space = spaces.MultiDiscrete([classes] * int(np.prod(space.shape)))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """:return: the codes as one vector"""
        return observation.reshape(-1).astype(np.int64)
