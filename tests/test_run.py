"""Short runs of the algorithm on all kinds of spaces, and its arguments."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dreamer import DreamerV3
from tests.support.envs import NoiseEnv, policy_name
from tests.support.helpers import ACTION_SPACES, IMAGE, MIXED, TINY, VECTOR, counter_envs, counter_model


@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_run(space, action_space):
    envs = DummyVecEnv([lambda: NoiseEnv(space, action_space)] * 2)
    model = DreamerV3(
        policy_name(space), envs, seed=0, **{**TINY, "learning_starts": 10, "training_ratio": 8, "free_nats": 0.0}
    )
    before = {name: p.clone() for name, p in model.policy.named_parameters()}
    model.learn(50)
    assert model._n_updates > 5
    for name, parameter in model.policy.named_parameters():
        assert th.isfinite(parameter).all(), name
        assert not th.equal(parameter, before[name]), name
    low = model.policy.return_normalizer.low
    assert th.isfinite(low) and low != 0.0


@pytest.mark.parametrize("n_envs", [1, 3])
def test_classic_control(n_envs):
    for name in ("CartPole-v1", "Pendulum-v1"):
        model = DreamerV3("MlpPolicy", make_vec_env(name, n_envs), seed=0, **TINY)
        model.learn(90)
        assert model.num_timesteps == 90 and model._n_updates > 0


def test_discrete_observations():
    model = DreamerV3("MlpPolicy", gym.make("FrozenLake-v1"), seed=0, **TINY)
    assert model.learn(80)._n_updates > 0


def test_integer_box_actions():
    space = spaces.Box(0, 10, (2,), np.int32)
    model = DreamerV3("MlpPolicy", NoiseEnv(VECTOR, space), seed=0, **{**TINY, "learning_starts": 10})
    model.learn(60)
    stored = model.replay_buffer.actions[1:50, 0]
    assert stored.dtype == np.float32 and len(np.unique(stored)) > 20  # scaled, not clipped to -1, 0, 1
    actions, _ = model.predict(np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32))
    assert sorted(np.unique(actions)) == list(range(11))


def test_episodic_train_freq():
    model = DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **{**TINY, "train_freq": (1, "episode"), "training_ratio": 16})
    model.learn(120)
    assert model._n_updates > 10


def test_buffer_too_small_collects_without_training():
    model = counter_model(buffer_size=1)
    with pytest.warns(UserWarning, match=r"window needs 9 \(.*\): no update will be made") as warned:
        model.learn(90)
    assert len(warned) == 1
    assert model._n_updates == 0 and model.num_timesteps == 90


def test_eval_callback(tmp_path):
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 2), eval_freq=20, n_eval_episodes=2, best_model_save_path=str(tmp_path)
    )
    model = DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **TINY)
    model.learn(60, callback=evaluation)
    best = DreamerV3.load(tmp_path / "best_model")
    assert best.predict(np.zeros(4, np.float32))[0] in (0, 1)


def test_vec_normalize():
    envs = VecNormalize(counter_envs(), norm_reward=True)
    model = DreamerV3("MlpPolicy", envs, seed=0, **TINY)
    model.learn(90)
    raw = model.replay_buffer.observations[: model.replay_buffer.size()]
    assert raw[..., 1].max() == 13.0  # raw in the buffer
    batch = model.replay_buffer.sample(16, env=envs)
    assert batch.observations.abs().max() <= 10.0 and batch.rewards.abs().max() <= 10.0
    assert model._n_updates > 0
    space = spaces.Dict({"camera": IMAGE, "position": VECTOR})  # VecNormalize changes it in place
    image_envs = VecNormalize(DummyVecEnv([lambda: NoiseEnv(space, ACTION_SPACES["discrete"])]))
    with pytest.raises(ValueError, match=r"VecNormalize must leave images alone \(`camera` is one\).*norm_obs_keys"):
        DreamerV3("MultiInputPolicy", image_envs, **TINY)
    with pytest.raises(ValueError, match=r"`obs` is one"):
        DreamerV3("MlpPolicy", VecNormalize(DummyVecEnv([lambda: NoiseEnv(IMAGE, ACTION_SPACES["discrete"])])), **TINY)
    box = spaces.Box(0.0, 1.0, (3, 16, 16), np.float32)
    float_images = VecNormalize(DummyVecEnv([lambda: NoiseEnv(box, ACTION_SPACES["discrete"])]))
    with pytest.raises(ValueError, match=r"`obs` is one"):
        DreamerV3("CnnPolicy", float_images, **TINY, policy_kwargs=dict(normalize_images=False))
    values = spaces.Box(-10.0, 10.0, (2, 3, 4), np.float32)  # not an image, although it has three dimensions
    with pytest.warns(UserWarning, match="is read as 24 numbers, not as an image"):
        DreamerV3("MlpPolicy", VecNormalize(DummyVecEnv([lambda: NoiseEnv(values, ACTION_SPACES["discrete"])])), **TINY)
    fresh = spaces.Dict({"camera": IMAGE, "position": VECTOR})
    rest = VecNormalize(DummyVecEnv([lambda: NoiseEnv(fresh, ACTION_SPACES["discrete"])]), norm_obs_keys=["position"])
    assert DreamerV3("MultiInputPolicy", rest, **TINY).learn(60)._n_updates > 0


@pytest.mark.slow
def test_compile_gives_the_same_numbers():
    plain, compiled = (counter_model(compile=switch, training_ratio=8) for switch in (False, True))
    for model in (plain, compiled):
        model.learn(45)
    for p, q in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        assert th.allclose(p, q, atol=1e-4)
