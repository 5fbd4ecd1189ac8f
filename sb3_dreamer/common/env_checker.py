"""What SB3's file of this name does for environments: say what is wrong with one before it is used."""

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
    """:raises ValueError: if a part of it is of a kind that we do not handle; nested ones are left to SB3's own check"""
    is_dict = isinstance(space, spaces.Dict)
    nested = (spaces.Dict, spaces.Tuple) if is_dict else ()
    for key, part in as_space_dict(space).items():
        if not isinstance(part, (*OBSERVATION_SPACES, *nested)):
            allowed = ", ".join(kind.__name__ for kind in OBSERVATION_SPACES)
            advice = ": leave it out by a wrapper, such as gymnasium.wrappers.FilterObservation" if is_dict else ""
            raise ValueError(f"Observations must be {allowed} or a Dict of these, `{key}` is {part}{advice}")


def describe_other(env: Any) -> str:
    """:return: what was given in place of an environment, and how to make one of it"""
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
    :param env: as a user gives it, its id aside
    :return: the same; one of the old ``gym`` package as SB3 converts it
    :raises ValueError: if it is no environment, or a vector environment of gymnasium, or has a space that we do not handle
    """
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"`env` is a vector environment of gymnasium ({type(env).__name__}), and Stable-Baselines3 has a kind of its own: "
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
    Decorate the constructor of ``DummyVecEnv``, which fails at a space without a shape, such as Text, and does not say so.

    :param constructor: an ``__init__``
    :return: the same; what it raises for a space that we do not handle is the exception of :func:`check_space`
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
    """Let ``DummyVecEnv``, so ``make_vec_env`` and RL Zoo, name the space that it cannot take."""
    if not hasattr(DummyVecEnv.__init__, "__wrapped__"):
        DummyVecEnv.__init__ = name_unsupported_spaces(DummyVecEnv.__init__)  # type: ignore[method-assign]
