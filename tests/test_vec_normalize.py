"""VecNormalize: raw rows in the buffer, normalised samples and policy inputs."""

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer import DreamerV3
from tests.support.helpers import TINY, counter_envs
from tests.support.replay import check_buffer


def test_rows_are_raw_and_aligned():
    """Counter environment with VecNormalize: all stored values, including terminal observations, are unnormalised."""
    model = DreamerV3("MlpPolicy", VecNormalize(counter_envs()), seed=0, **TINY)
    model.learn(3 * 40)
    buffer = model.replay_buffer
    # Terminal observations are normalised and unnormalised, which causes rounding errors.
    buffer.observations = np.round(buffer.observations)
    assert check_buffer(buffer) == [[], [], []]


def test_samples_are_normalised_with_the_current_statistics():
    env = VecNormalize(counter_envs(), clip_obs=5.0)
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    model.learn(3 * 40)
    buffer = model.replay_buffer
    batch = buffer.sample(8, env=env)
    steps, envs = batch.indices
    raw = buffer.observations[steps % buffer.buffer_size, envs[:, None]]
    np.testing.assert_allclose(batch.observations, env.normalize_obs(raw), rtol=1e-5, atol=1e-6)
    rewards = buffer.rewards[steps % buffer.buffer_size, envs[:, None]]
    np.testing.assert_allclose(batch.rewards, env.normalize_reward(rewards), rtol=1e-5, atol=1e-6)
    assert not batch.rewards[batch.is_first].any()  # the reward of a first row stays 0


def test_the_policy_sees_what_the_model_trains_on():
    env = VecNormalize(counter_envs())
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    model.learn(3 * 40)
    seen = []
    model.policy.world_model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    env.training = False  # freeze the statistics
    obs, _, _, _ = env.step(model._sample_action(0, None, 3)[0])
    model._last_obs = obs
    model._sample_action(0, None, 3)
    np.testing.assert_allclose(seen[-1], env.normalize_obs(env.get_original_obs()), rtol=1e-5, atol=1e-6)
    assert isinstance(seen[-1], th.Tensor) and np.abs(env.get_original_obs()).max() > 10.0 >= seen[-1].abs().max()
