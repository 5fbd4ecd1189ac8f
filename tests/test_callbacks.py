"""SB3's stock callbacks and wrappers around a training run."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

from sb3_dreamer import DreamerV3
from tests.helpers import TINY
from tests.test_buffers import StopAt, check_buffer, counter_model


def cartpole_model(**kwargs) -> DreamerV3:
    return DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **{**TINY, **kwargs})


def test_checkpoints_can_be_continued(tmp_path):
    model = cartpole_model(tensorboard_log=str(tmp_path / "tb"))
    model.learn(60, callback=CheckpointCallback(20, str(tmp_path), save_replay_buffer=True))
    for n in (20, 40, 60):
        assert (tmp_path / f"rl_model_{n}_steps.zip").exists() and (
            tmp_path / f"rl_model_replay_buffer_{n}_steps.pkl"
        ).exists()
    assert list((tmp_path / "tb" / "DreamerV3_1").glob("events*"))
    loaded = DreamerV3.load(tmp_path / "rl_model_40_steps", env=make_vec_env("CartPole-v1", 1))
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps.pkl")
    assert loaded.num_timesteps == 40
    assert loaded.learn(20, reset_num_timesteps=False).num_timesteps == 60


def test_early_stop_in_a_list_and_under_the_progress_bar():
    model = counter_model()
    model.learn(90, callback=[StopAt(9)], progress_bar=True)
    model.learn(60, reset_num_timesteps=False, progress_bar=True)
    assert model.num_timesteps == 27 + 60 and check_buffer(model.replay_buffer) == [[], [], []]


def test_stop_at_an_episode_counts_it():
    model = cartpole_model()
    model.learn(200, callback=StopTrainingOnMaxEpisodes(2))
    assert len(model.ep_info_buffer) == 2
    assert model.replay_buffer.dones.sum() == 2


def test_continue_in_the_same_environment(tmp_path):
    """``force_reset=False``: the environment goes on, the model begins anew in mid-episode."""
    model = cartpole_model()
    model.learn(33)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", env=model.env, force_reset=False)
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.num_timesteps == 43 and loaded.replay_buffer.is_first[0, 0]
    np.testing.assert_array_equal(loaded.replay_buffer.observations[0], model._last_obs)


def test_learning_rate_zero_at_load(tmp_path):
    model = cartpole_model(learning_rate=1e-2, lr_warmup_steps=0, training_ratio=8)
    model.learn(60)
    model.save(tmp_path / "model")
    zero = dict(learning_rate=0.0, lr_schedule=lambda _: 0.0)
    loaded = DreamerV3.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 1), custom_objects=zero)
    before = [p.clone() for p in loaded.policy.trainable_parameters()]
    loaded.learn(60)
    assert loaded._n_updates > model._n_updates
    assert all((p == q).all() for p, q in zip(before, loaded.policy.trainable_parameters(), strict=True))


@pytest.mark.parametrize("n_stack", [1, 4])
def test_stacked_frames(n_stack):
    env = VecFrameStack(make_vec_env("sb3_dreamer/PixelCatch-v0", 2, env_kwargs=dict(image_size=16)), n_stack)
    model = DreamerV3("CnnPolicy", env, seed=0, **TINY)
    assert model.observation_space.shape == (3 * n_stack, 16, 16)
    assert model.learn(60)._n_updates > 0


def test_subprocesses():
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    assert model.learn(60)._n_updates > 0
    env.close()
