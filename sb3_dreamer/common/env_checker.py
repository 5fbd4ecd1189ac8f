"""Checks of environments before they are used, in addition to those of SB3."""

import functools
from collections.abc import Callable
from typing import Any

from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_dreamer.common.preprocessing import as_space_dict

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_space(space: spaces.Space) -> None:
    """:raises ValueError: if the space is not supported; nested spaces are left to SB3's own check"""
    is_dict = isinstance(space, spaces.Dict)
    nested = (spaces.Dict, spaces.Tuple) if is_dict else ()
    for key, part in as_space_dict(space).items():
        if not isinstance(part, (*OBSERVATION_SPACES, *nested)):
            allowed = ", ".join(kind.__name__ for kind in OBSERVATION_SPACES)
            wrappers = "gymnasium.wrappers.FilterObservation (MiniGrid: minigrid.wrappers.ImgObsWrapper)"
            advice = f": leave it out by a wrapper, such as {wrappers}" if is_dict else ""
            raise ValueError(f"Observations must be {allowed} or a Dict of these, `{key}` is {part}{advice}")


def describe_other(env: Any) -> str:
    """:return: a description of the wrong argument, and how to make an environment of it"""
    if callable(env):
        kind = "class" if isinstance(env, type) else "function"
        return f"the {kind} {getattr(env, '__name__', repr(env))}: call it"
    if isinstance(env, EnvSpec):
        return f"the EnvSpec of {env.id}: make it by `gymnasium.make`"
    if isinstance(env, (list, tuple)):
        return f"a {type(env).__name__}: several environments are a VecEnv, see `DummyVecEnv` and `make_vec_env`"
    return repr(env)


def check_env(env: Any) -> GymEnv:
    """
    :param env: environment of a user, but not an id
    :return: the same environment; SB3 converts those of the old ``gym`` package
    :raises ValueError: if ``env`` is not an environment, is a vector environment of gymnasium, or has an unsupported space
    """
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"`env` is a vector environment of gymnasium ({type(env).__name__}), but Stable-Baselines3 has its own kind: "
            "make it by `stable_baselines3.common.env_util.make_vec_env(id, n_envs=...)`"
        )
    if isinstance(env, type) or not (hasattr(env, "reset") and hasattr(env, "step")):
        raise ValueError(f"`env` must be an environment or the id of one, got {describe_other(env)}")
    if not isinstance(env, VecEnv):
        env = _patch_env(env)
    check_space(env.observation_space)
    return env


def name_unsupported_spaces(constructor: Callable[..., None]) -> Callable[..., None]:
    """
    Decorate the constructor of ``DummyVecEnv``, which fails with an unclear error for spaces without a shape, such as Text.

    :param constructor: an ``__init__``
    :return: the decorated constructor, which raises the error of :func:`check_space` for an unsupported space
    """

    @functools.wraps(constructor)
    def checked(self: DummyVecEnv, *args: Any, **kwargs: Any) -> None:
        try:
            constructor(self, *args, **kwargs)
        except TypeError:
            if hasattr(self, "observation_space"):
                check_space(self.observation_space)
            raise

    return checked


def explain_spaces() -> None:
    """Make ``DummyVecEnv``, and therefore ``make_vec_env`` and RL Zoo, raise a clear error for unsupported spaces."""
    if not hasattr(DummyVecEnv.__init__, "__wrapped__"):
        DummyVecEnv.__init__ = name_unsupported_spaces(DummyVecEnv.__init__)  # type: ignore[method-assign]
