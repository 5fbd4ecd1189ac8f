"""The tests of recurrent policies in sb3-contrib (RecurrentPPO), applied to DreamerV3."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.type_aliases import LatentState
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY, counter_model


class HiddenVelocities(gym.ObservationWrapper):
    """CartPole that shows positions and angles only."""

    def __init__(self, env):
        super().__init__(env)
        low, high = env.observation_space.low[[0, 2]], env.observation_space.high[[0, 2]]
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation):
        return observation[[0, 2]]


def hidden_cartpole(n_envs: int = 1):
    return make_vec_env(lambda: HiddenVelocities(gym.make("CartPole-v1")), n_envs)


def test_hidden_velocities():
    model = DreamerV3("MlpPolicy", VecNormalize(hidden_cartpole(2)), seed=0, **TINY)
    assert model.learn(80)._n_updates > 0
    evaluate_policy(model, hidden_cartpole(), n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_states_of_predict(n_envs):
    """One state per environment, as float32 arrays. No state and an episode start are equivalent."""
    model = DreamerV3("MlpPolicy", hidden_cartpole(n_envs), seed=0, **TINY)
    obs, starts = model.env.reset(), np.ones(n_envs, dtype=bool)
    _, state = model.predict(obs, deterministic=True)
    _, reset = model.predict(obs, state, starts, deterministic=True)
    assert [part.shape for part in state] == [(n_envs, 8), (n_envs, 2, 4), (n_envs, 2)]
    for part, other in zip(state, reset, strict=True):
        assert part.dtype == np.float32 and isinstance(part, np.ndarray)
        np.testing.assert_array_equal(part, other)


def test_acting_filters_as_training_does():
    """States carried through ``predict`` equal those of the same rows seen as one sequence, across episode borders."""
    model = counter_model(training_ratio=8).learn(60)
    rng, steps = np.random.default_rng(0), 20
    observations = rng.normal(size=(3, steps, 3)).astype(np.float32)
    starts = rng.random((3, steps)) < 0.2
    starts[:, 0] = True
    state, states, actions = None, [], []
    for t in range(steps):
        action, state = model.predict(observations[:, t], state, starts[:, t], deterministic=True)
        states.append(state)
        actions.append(action)
    # The action before each row. Its value at episode starts must not matter.
    previous = np.stack([np.full(3, 1), *actions[:-1]], axis=1)[..., None]
    world_model = model.policy.world_model
    with th.no_grad():
        embed = world_model.encode(th.as_tensor(observations))
        one_hot = th.nn.functional.one_hot(th.as_tensor(previous)[..., 0], 4).float()
        modes = th.as_tensor(np.stack([part[1] for part in states], axis=1)).argmax(-1)  # (3, T, S): the modes as noise
        sequence, _ = world_model.rssm.observe(embed, one_hot, th.as_tensor(starts), world_model.rssm.initial(3), modes)
    for name, part in zip(LatentState._fields, (0, 1), strict=True):
        carried = np.stack([state[part] for state in states], axis=1)
        np.testing.assert_allclose(carried, getattr(sequence, name), atol=1e-5)


def test_the_state_survives_pickling_and_other_batches():
    model = counter_model()
    obs = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    _, state = model.predict(obs, deterministic=True)
    _, both = model.predict(np.concatenate([obs, obs]), tuple(np.concatenate([p, p]) for p in state), deterministic=True)
    _, single = model.predict(obs[:1], tuple(part[:1] for part in state), deterministic=True)
    for part, one in zip(both, single, strict=True):
        np.testing.assert_allclose(part[0], one[0], atol=1e-6)
        np.testing.assert_allclose(part[3], one[0], atol=1e-6)


def test_dict_observations():
    space = spaces.Dict({"position": spaces.Box(-1, 1, (2,), np.float32), "light": spaces.Discrete(3)})
    model = DreamerV3("MultiInputPolicy", NoiseEnv(space, spaces.Discrete(2)), seed=0, **TINY)
    model.learn(60)
    obs = {key: np.stack([space[key].sample() for _ in range(4)]) for key in space.spaces}
    _, state = model.predict(obs)
    actions, _ = model.predict(obs, state, np.array([False, True, False, True]))
    assert actions.shape == (4,)
