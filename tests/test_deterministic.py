"""The same seed gives the same run, another seed a different one."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV3
from tests.support.envs import NoiseEnv
from tests.support.helpers import ACTION_SPACES, IMAGE, TINY


def run(env, seed: int) -> DreamerV3:
    policy = "CnnPolicy" if len(env.observation_space.shape) == 3 else "MlpPolicy"
    return DreamerV3(policy, env, seed=seed, **{**TINY, "training_ratio": 8}).learn(80)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_seeds_reproduce_a_run_bit_for_bit(name):
    first, second, other = (run(make_vec_env(name, 2), seed) for seed in (3, 3, 4))
    for (key, p), q in zip(first.policy.state_dict().items(), second.policy.state_dict().values(), strict=True):
        assert th.equal(p, q), key
    np.testing.assert_array_equal(first.replay_buffer.observations, second.replay_buffer.observations)
    np.testing.assert_array_equal(first.replay_buffer.stoch, second.replay_buffer.stoch)
    assert not th.equal(next(first.policy.parameters()), next(other.policy.parameters()))
    scores = []
    for model in (first, second):
        env = make_vec_env(name, 2, seed=7)
        scores.append(evaluate_policy(model, env, n_eval_episodes=3, return_episode_rewards=True))
    assert scores[0] == scores[1]


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_images(action_space):
    first, second = (run(NoiseEnv(IMAGE, action_space), 5) for _ in range(2))
    for p, q in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert th.equal(p, q)
    obs = np.stack([spaces.Box(0, 255, IMAGE.shape, np.uint8, seed=i).sample() for i in range(4)])
    np.testing.assert_array_equal(first.predict(obs, deterministic=True)[0], second.predict(obs, deterministic=True)[0])


def test_set_random_seed_after_construction():
    models = [DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", 2), seed=0, **TINY) for _ in range(2)]
    for model in models:
        model.set_random_seed(11)
        model.learn(60)
    np.testing.assert_array_equal(*(model.replay_buffer.observations for model in models))


def test_evaluation_leaves_training_alone():
    """Deterministic evaluations between updates do not affect training."""
    parameters = []
    for callback in (None, EvalCallback(make_vec_env("CartPole-v1", 2, seed=1), eval_freq=10, n_eval_episodes=2, verbose=0)):
        model = DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", 2), seed=0, **TINY)
        parameters.append(list(model.learn(80, callback=callback).policy.parameters()))
    assert callback.evaluations_timesteps == [] and callback.best_mean_reward > 0  # it did evaluate
    assert all(th.equal(p, q) for p, q in zip(*parameters, strict=True))
