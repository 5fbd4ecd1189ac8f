"""States of environments and wrappers, random generators, statistics of VecNormalize."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_dreamer.common.env_state import get_states, get_statistics, has_states, set_states, set_statistics
from sb3_dreamer.common.envs import PixelReachEnv
from sb3_dreamer.common.plain_data import from_plain, to_plain


def limited():
    return Monitor(TimeLimit(PixelReachEnv("dict", image_size=16), 10))


def env_of(kind):
    env = DummyVecEnv([limited, limited])
    if kind == "stacked":
        return VecFrameStack(env, 2)
    if kind == "normalized":
        return VecMonitor(VecNormalize(DummyVecEnv([lambda: limited().env] * 2), norm_obs_keys=["goal"]))
    return env


def steps(env, n, seed):
    rng, seen = np.random.default_rng(seed), []
    for _ in range(n):
        observations, rewards, dones, infos = env.step(rng.uniform(-1, 1, (2, 2)).astype(np.float32))
        ends = [(info.get("TimeLimit.truncated"), info.get("episode", {}).get("r")) for info in infos]
        seen.append((observations["goal"].tolist(), observations["image"].sum(), rewards.tolist(), dones.tolist(), ends))
    return seen


@pytest.mark.parametrize("kind", ["plain", "stacked", "normalized"])
def test_episodes_go_on(kind):
    """Wrappers, sums of Monitor, time limit and random goals of the next episodes, through plain data."""
    env = env_of(kind)
    env.seed(3)
    env.reset()
    steps(env, 16, 0)
    arrays = []
    plain = to_plain([get_states(env), get_statistics(env.venv if kind == "normalized" else None)], arrays)
    expected = steps(env, 25, 1)
    assert sum(any(dones) for _, _, _, dones, _ in expected) == 3  # after 20, 30 and 40 steps
    other = env_of(kind)
    states, statistics = from_plain(plain, arrays)
    assert set_states(other, states)
    set_statistics(other.venv if kind == "normalized" else None, statistics)
    assert steps(other, 25, 1) == expected


def test_only_random_generators_without_states():
    env = make_vec_env("CartPole-v1", 2, seed=0)
    env.reset()
    assert not has_states(env)
    states = get_states(env)
    assert states.keys() == {"generators"}
    other = make_vec_env("CartPole-v1", 2, seed=5)
    assert not set_states(other, states)
    np.testing.assert_array_equal(other.reset(), env.reset())


def test_unknown_generators_are_refused():
    env = make_vec_env("CartPole-v1", 1)
    with pytest.raises(KeyError, match="load"):
        set_states(env, {"generators": [{"bit_generator": "load"}]})


def test_vec_normalize_must_be_there():
    env = VecNormalize(make_vec_env("CartPole-v1", 1))
    statistics = get_statistics(env)
    with pytest.raises(ValueError, match="was made with VecNormalize, `env` is without it"):
        set_statistics(None, statistics)
    with pytest.raises(ValueError, match="was made without VecNormalize, `env` is with it"):
        set_statistics(env, None)
    dict_env = VecNormalize(DummyVecEnv([limited]), norm_obs_keys=["goal"])
    with pytest.raises(ValueError, match=r"normalizes the observations \[''\], that of `env` \['goal'\]"):
        set_statistics(dict_env, statistics)


def test_states_of_the_users_environment():
    """The documented example: CartPole with two methods."""

    class MyCartPole(gym.Wrapper):
        def get_state(self):
            return {"state": tuple(self.unwrapped.state), "beyond": self.unwrapped.steps_beyond_terminated}

        def set_state(self, state):
            self.unwrapped.state = state["state"]
            self.unwrapped.steps_beyond_terminated = state["beyond"]

    build = lambda: make_vec_env("CartPole-v1", 2, wrapper_class=MyCartPole)  # noqa: E731
    env, other = build(), build()
    env.reset()
    for _ in range(5):
        env.step([0, 1])
    assert set_states(other, get_states(env))
    for _ in range(30):
        for mine, theirs in zip(env.step([1, 0])[:3], other.step([1, 0])[:3], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.SFC64, np.random.Philox, np.random.MT19937])
def test_generators_of_every_kind(kind):
    env, other = make_vec_env("CartPole-v1", 1), make_vec_env("CartPole-v1", 1)
    env.reset()
    env.env_method("set_wrapper_attr", "np_random", np.random.Generator(kind(3)))
    arrays = []
    set_states(other, from_plain(to_plain(get_states(env), arrays), arrays))
    np.testing.assert_array_equal(env.reset(), other.reset())


def test_other_generators_are_left_out():
    env = make_vec_env("CartPole-v1", 1)
    env.env_method("set_wrapper_attr", "_np_random", np.random.RandomState(3))
    assert get_states(env)["generators"] == []
