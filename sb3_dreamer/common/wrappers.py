"""
Wrappers for the presets (``env_wrapper``) that gymnasium does not have.

Functions that need other arguments of ``gymnasium.make`` make the environment again (:func:`remake`), so that one line of
YAML is enough for training, evaluation and all commands of RL Zoo.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import AddRenderObservation, AtariPreprocessing, ResizeObservation
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer.common.envs.crafter import CrafterEnv

__all__ = [
    "ActionRepeat",
    "CodesToClasses",
    "CrafterEnv",
    "RestartOnException",
    "TupleToDict",
    "atari",
    "dm_control_pixels",
    "flappy_bird_frames",
    "make_again",
    "remake",
]

logger = logging.getLogger(__name__)


def with_new_env(wrapper: gym.Wrapper, env: gym.Env) -> gym.Wrapper:
    """
    :param wrapper: wrapper to keep
    :param env: environment that it wraps from now on
    :return: the wrapper
    """
    wrapper.env = env
    wrapper._cached_spec = None  # otherwise gymnasium would still return the old one
    if isinstance(wrapper, Monitor):
        wrapper.needs_reset = True  # the episode of the old environment is over
    return wrapper


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
    return with_new_env(env, made) if isinstance(env, Monitor) else made


def close_quietly(env: gym.Env) -> None:
    """Close an environment that may be broken."""
    try:
        env.close()
    except Exception as error:
        logger.debug("The broken environment could not be closed: %r", error)


def make_again(env: gym.Env) -> gym.Env:
    """
    Make an environment again with the same arguments. Wrappers that gymnasium cannot make again, such as ``Monitor``, are kept
    and get the new environment.

    :param env: environment made by ``gymnasium.make``, with any wrappers; it is closed
    :return: the new environment
    :raises ValueError: if the environment was not made by ``gymnasium.make``
    """
    if env.spec is None:
        raise ValueError(f"The environment must come from `gymnasium.make`, because it is made again; got {env}")
    if all(wrapper.kwargs is not None for wrapper in env.spec.additional_wrappers):
        spec = env.spec
        close_quietly(env)
        return gym.make(spec)
    assert isinstance(env, gym.Wrapper)
    inner = make_again(env.env)
    if isinstance(env, RecordConstructorArgs):
        arguments = {name: value for name, value in env._saved_kwargs.items() if name != "env"}
        return type(env)(env=inner, **deepcopy(arguments))
    return with_new_env(env, inner)


class RestartOnException(gym.Wrapper):
    """
    If the environment raises an exception, make it again and go on. The episode is cut by a truncation: ``step`` returns the
    last observation, a reward of 0 and ``truncated=True``, and the next ``reset`` resets the new environment. An exception in
    ``reset`` is followed by a reset of the new environment. ``KeyboardInterrupt`` and ``SystemExit`` pass through.

    Every restart is logged as a warning (logger ``sb3_dreamer.common.wrappers``). ``info`` of the cut step holds
    ``"restart_error"`` and ``"restarts"``, their number so far, which is also the attribute ``restarts``
    (``vec_env.get_attr("restarts")``). Use this as the last (outermost) wrapper in RL Zoo's ``env_wrapper``, so that it also
    restarts after exceptions in other wrappers. A ``Monitor`` inside of it is kept and does not count the cut episode.

    :param env: environment
    :param make_env: function that makes the environment again, without the ``Monitor`` that may stand directly inside of this
        wrapper; None: as :func:`make_again`, by ``gymnasium.make``
    :param max_restarts: restarts within ``window``; the next exception is raised
    :param window: time in seconds
    :param wait: seconds to wait before the environment is made again, for a simulator that needs time
    :raises ValueError: if there is no ``make_env`` and the environment was not made by ``gymnasium.make``, if a number is
        negative, or if a new environment has other spaces
    """

    def __init__(
        self,
        env: gym.Env,
        make_env: Callable[[], gym.Env] | None = None,
        max_restarts: int = 10,
        window: float = 3600.0,
        wait: float = 0.0,
    ):
        super().__init__(env)
        if make_env is None and env.spec is None:
            raise ValueError(
                f"`RestartOnException` needs `make_env`, unless `gymnasium.make` has made the environment; got {env}"
            )
        if min(max_restarts, window, wait) < 0:
            raise ValueError(f"No number may be negative, got {max_restarts=}, {window=}, {wait=}")
        self.make_env, self.max_restarts, self.window, self.wait = make_env, max_restarts, window, wait
        self.restarts = 0
        self._times: deque[float] = deque()  # of the restarts within the window
        self._last_observation: Any = None
        self._seed: int | None = None
        self._is_new = False  # not reset since it was made again

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        :return: as the environment, or a truncation after an exception
        :raises Exception: that of the environment, if there were too many
        """
        if self._last_observation is None:
            return self.env.step(action)  # not reset yet: an error of the caller
        try:
            observation, *rest = self.env.step(action)
        except Exception as error:
            self._restart(error)
            info = {"restart_error": repr(error), "restarts": self.restarts}
            return deepcopy(self._last_observation), 0.0, False, True, info
        self._last_observation = deepcopy(observation)  # the environment may overwrite it
        return (observation, *rest)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        As the environment's. A new environment that gets no seed is seeded from the last one and the number of restarts.

        :raises Exception: that of the environment, if there were too many
        """
        self._seed = self._seed if seed is None else seed
        while True:
            if seed is None and self._is_new and self._seed is not None:
                seed = int(np.random.SeedSequence([self._seed, self.restarts]).generate_state(1)[0])
            try:
                observation, info = self.env.reset(seed=seed, options=options)
            except Exception as error:
                self._restart(error)
                continue
            self._is_new, self._last_observation = False, deepcopy(observation)
            return observation, info

    def _restart(self, error: Exception) -> None:
        """
        Make the environment again. An exception there counts like one of the environment.

        :param error: exception of the environment, raised again if there were too many
        """
        spaces_before = self.observation_space, self.action_space
        while True:
            now = time.monotonic()
            while self._times and now - self._times[0] > self.window:
                self._times.popleft()
            if len(self._times) >= self.max_restarts:
                message = (
                    f"The environment failed after {len(self._times)} restarts in {self.window:g} s ({self.restarts} in all)"
                )
                logger.error("%s: %r", message, error)
                if hasattr(error, "add_note"):  # since Python 3.11
                    error.add_note(message)
                raise error
            self._times.append(now)
            self.restarts += 1
            logger.warning("The environment failed and is made again, restart %d: %r", self.restarts, error)
            time.sleep(self.wait)
            try:
                self.env = self._make()
                break
            except Exception as failure:
                error = failure
        self._is_new = True
        if (self.observation_space, self.action_space) != spaces_before:
            raise ValueError(f"The new environment has other spaces: {self.env.observation_space}, {self.env.action_space}")

    def _make(self) -> gym.Env:
        if self.make_env is None:
            return make_again(self.env)
        close_quietly(self.env.env if isinstance(self.env, Monitor) else self.env)
        made = self.make_env()
        return with_new_env(self.env, made) if isinstance(self.env, Monitor) else made


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
