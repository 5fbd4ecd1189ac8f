"""Environments for tests, and a check of the whole life cycle of a model."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV3
from tests.support.helpers import TINY

QUICK = {**TINY, "learning_starts": 8, "batch_length": 6, "training_ratio": 2, "imagination_horizon": 2}


class NoiseEnv(gym.Env):
    """Random observations of any space. Checks the actions."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space, self.t = observation_space, action_space, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t % 11 == 5, self.t % 11 == 10, {}


class Endless(gym.Env):
    """An environment whose episode never ends."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, False, False, {}


def policy_name(space: spaces.Space) -> str:
    return "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"


def check_whole_cycle(env: gym.Env, tmp_path, **kwargs) -> DreamerV3:
    """Construct, learn, predict, save, load. The loaded model must predict the same actions."""
    model = DreamerV3(policy_name(env.observation_space), env, seed=0, **{**QUICK, **kwargs})
    model.learn(30)
    assert model._n_updates > 0
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    observation, _ = env.reset(seed=1)
    action, state = model.predict(observation, deterministic=True)
    assert env.action_space.contains(action)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", device="cpu")
    again, same = loaded.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, again)
    for part, other in zip(state, same, strict=True):
        np.testing.assert_array_equal(part, other)
    return model
