"""Errors for unsupported environments: gym, vector environments, classes, unsupported spaces."""

import functools
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, patch_gym

import sb3_dreamer.common.env_checker as env_checker
from sb3_dreamer import DreamerV3
from sb3_dreamer.common.envs import CounterEnv
from tests.support.envs import NoiseEnv
from tests.support.helpers import ACTION_SPACES, TINY, VECTOR


class OldSpace:
    """A space of the ``gym`` package, which is not a gymnasium space."""


class OldEnv:
    """An environment with the interface of the ``gym`` package."""

    observation_space, action_space = OldSpace(), OldSpace()
    unwrapped = SimpleNamespace(reset=lambda seed=None: None)

    def reset(self):
        """As gym's."""

    def step(self, action):
        """As gym's."""


@pytest.fixture
def old_gym(monkeypatch):
    """Simulate an installed ``gym`` package whose environments shimmy converts."""
    monkeypatch.setattr(patch_gym, "gym_installed", True)
    monkeypatch.setattr(patch_gym, "gym", SimpleNamespace(Env=OldEnv), raising=False)
    stand_in = SimpleNamespace(GymV26CompatibilityV0=lambda env: CounterEnv(7))
    monkeypatch.setitem(sys.modules, "shimmy", stand_in)
    return stand_in


def test_old_gym_is_checked_after_sb3_has_converted_it(old_gym):
    with pytest.warns(UserWarning, match="OpenAI Gym") as warned:
        model = DreamerV3("MlpPolicy", OldEnv(), **TINY)
    assert len(warned) == 1  # converted once
    assert model.learn(40)._n_updates > 0
    with pytest.warns(UserWarning, match="OpenAI Gym"):
        model.set_env(OldEnv())


def test_old_gym_with_an_unsupported_space(old_gym):
    converted = NoiseEnv(spaces.Dict({"a": VECTOR, "b": spaces.Text(5)}), ACTION_SPACES["discrete"])
    old_gym.GymV26CompatibilityV0 = lambda env: converted
    with pytest.warns(UserWarning, match="OpenAI Gym"), pytest.raises(ValueError, match="`b` is Text"):
        DreamerV3("MultiInputPolicy", OldEnv(), **TINY)


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_vector_environments_of_gymnasium(mode):
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode=mode)
    for env in (envs, gym.wrappers.vector.RecordEpisodeStatistics(envs)):
        with pytest.raises(ValueError, match=r"vector environment of gymnasium \(.*make_vec_env\(id, n_envs="):
            DreamerV3("MlpPolicy", env, **TINY)
    model = DreamerV3("MlpPolicy", "CartPole-v1", **TINY)
    with pytest.raises(ValueError, match="vector environment of gymnasium"):
        model.set_env(envs)


@pytest.mark.parametrize(
    "env, kind",
    [
        (CartPoleEnv, "the class CartPoleEnv: call it"),
        (lambda: CartPoleEnv(), "the function <lambda>: call it"),
        (functools.partial(CartPoleEnv, sutton_barto_reward=True), r"the function functools.partial\(.*: call it"),
        ([CartPoleEnv, CartPoleEnv], "a list: several environments are a VecEnv"),
        (gym.spec("CartPole-v1"), "the EnvSpec of CartPole-v1: make it by `gymnasium.make`"),
        (4, "4"),
    ],
    ids=["class", "function", "partial", "list", "spec", "number"],
)
def test_not_an_environment(env, kind):
    model = DreamerV3("MlpPolicy", "CartPole-v1", **TINY)
    for take in (lambda: DreamerV3("MlpPolicy", env, **TINY), lambda: model.set_env(env)):
        with pytest.raises(ValueError, match=f"`env` must be an environment or the id of one, got {kind}"):
            take()


WITH_TEXT = spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "mission": spaces.Text(50)})


def make_with_text(space: spaces.Space = WITH_TEXT):
    return NoiseEnv(space, ACTION_SPACES["discrete"])


@pytest.mark.parametrize(
    "space", [WITH_TEXT, spaces.Text(50), spaces.Sequence(spaces.Discrete(2))], ids=["dict", "text", "sequence"]
)
def test_spaces_without_a_shape_in_any_vec_env(space):
    """SB3's error: `'NoneType' object is not iterable`."""

    def make():
        return make_with_text(space)

    def build(vec_env):
        DreamerV3("MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy", vec_env(), **TINY)

    message = r"Observations must be Box, .* or a Dict of these, `(mission|obs)` is (Text|Sequence)"
    for vec_env in (make, lambda: DummyVecEnv([make]), lambda: make_vec_env(make, 2)):
        with pytest.raises(ValueError, match=message):
            build(vec_env)


def test_spaces_without_a_shape_in_processes():
    envs = SubprocVecEnv([make_with_text], start_method="fork")
    try:
        with pytest.raises(ValueError, match=r"`mission` is Text.*leave it out by a wrapper.*FilterObservation"):
            DreamerV3("MultiInputPolicy", envs, **TINY)
    finally:
        envs.close()
    advised = gym.wrappers.FilterObservation(make_with_text(), ["image"])
    assert DreamerV3("MultiInputPolicy", make_vec_env(lambda: advised), **TINY).learn(40)._n_updates > 0


def test_minigrid():
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match="`mission` is MissionSpace"):
        make_vec_env("MiniGrid-Unlock-v0", 2)


def test_other_errors_of_dummy_vec_env_are_unchanged():
    with pytest.raises(TypeError, match="reset_me"):
        DummyVecEnv([lambda: NoiseEnv(VECTOR, reset_me=True)])
    with pytest.raises(ValueError, match="same instance"):
        env = CounterEnv(7)
        DummyVecEnv([lambda: env] * 2)
    constructor = DummyVecEnv.__init__
    env_checker.explain_spaces()  # may be called twice
    assert DummyVecEnv.__init__ is constructor
