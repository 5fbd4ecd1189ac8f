"""Short runs of the whole algorithm on all kinds of spaces, and its arguments."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from tests.support.envs import Endless, NoiseEnv, policy_name
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
    assert stored.dtype == np.float32 and len(np.unique(stored)) > 20  # scaled, not cut to -1, 0, 1
    actions, _ = model.predict(np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32))
    assert sorted(np.unique(actions)) == list(range(11))


def test_episodic_train_freq():
    model = DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **{**TINY, "train_freq": (1, "episode"), "training_ratio": 16})
    model.learn(120)
    assert model._n_updates > 10


def test_numbers_of_numpy(tmp_path):
    """As they come out of an array or a search: every number, alone and in a tuple, then saved and loaded."""
    numbers = {name: np.int64(value) for name, value in TINY.items() if isinstance(value, int)}
    numbers |= {name: np.float32(0.5) for name in ("gamma", "ent_coef", "learning_rate", "free_nats", "tau", "agc_clip")}
    numbers |= dict(seed=np.int64(0), stats_window_size=np.int64(10), replay_context=np.True_, online_queue=np.False_)
    for train_freq in (np.int64(2), (np.int64(2), "step"), (np.int32(1), "episode")):
        model = DreamerV3("MlpPolicy", "CartPole-v1", **{**TINY, **numbers, "train_freq": train_freq}).learn(np.int64(60))
        assert model._n_updates > 0
        assert model.train_freq == (int(train_freq[0] if isinstance(train_freq, tuple) else 2), model.train_freq.unit)
        model.save(tmp_path / "model")
        loaded = DreamerV3.load(tmp_path / "model", env=gym.make("CartPole-v1"), train_freq=np.int64(3))
        assert loaded.learn(30).train_freq.frequency == 3 and loaded.gamma == 0.5


def test_train_freq_between_two_runs():
    model = counter_model().learn(30)
    model.train_freq = np.int64(5)
    steps, collect = [], model.env.step
    model.env.step = lambda actions: steps.append(model._n_updates) or collect(actions)
    model.learn(60)
    assert len(steps) == 20 and len(set(steps[:5])) == 1  # no update within five steps


def test_buffer_too_small_collects_without_training():
    model = counter_model(buffer_size=1)
    with pytest.warns(UserWarning, match="window needs 9: no update will be made") as warned:
        model.learn(90)
    assert len(warned) == 1
    assert model._n_updates == 0 and model.num_timesteps == 90


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "learning_starts", "steps", "end"),
    [(1, 1, 60, 50, 50), (1, 1, 40, 40, 40), (1, 1, 40, 41, None), (3, 4, 40, 25, 36), (3, 4, 40, 37, None)],
)
def test_a_run_that_ends_before_training_starts_says_so(n_envs, train_freq, learning_starts, steps, end):
    arguments = {**TINY, "learning_starts": learning_starts, "train_freq": train_freq}
    model = DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", n_envs), seed=0, **arguments)
    for _ in range(2):  # each time, for the count begins again
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            counts = []
            model.learn(steps, callback=lambda *_, counts=counts, warned=warned: counts.append(len(warned)) is None)
        messages = [str(w.message) for w in warned if w.category is UserWarning]
        assert bool(model._n_updates) == (end is None)
        if end is None:
            assert messages == []
        else:
            assert len(messages) == 1 and counts[0] == 1  # before anything is collected
            assert f"ends at step {end}, and training starts after `learning_starts`={learning_starts} steps" in messages[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(steps, reset_num_timesteps=False)  # goes on counting
    assert model._n_updates > 0


def test_critic_target_follows():
    model = counter_model(training_ratio=8, learning_rate=1e-2, lr_warmup_steps=0)
    start = [p.clone() for p in model.policy.critic_target.parameters()]
    model.learn(30)
    targets, critics = [], []
    right = model.policy.update_target

    def update_target(tau):
        targets.append([p.clone() for p in model.policy.critic_target.parameters()])
        critics.append([p.clone() for p in model.policy.critic.parameters()])
        right(tau)

    model.policy.update_target = update_target
    model.train(1, 4)
    for before, critic, after in zip(targets[0], critics[0], model.policy.critic_target.parameters(), strict=True):
        assert th.allclose(after, 0.98 * before + 0.02 * critic)  # after the step, with the new critic
    assert any(not th.equal(p, q) for p, q in zip(start, model.policy.critic_target.parameters(), strict=True))


def test_train_by_hand(monkeypatch):
    """As for SAC, the batch size may be left out; without it the model's own counts, as it is then."""
    model = counter_model().learn(60)
    updates, sizes, sample = model._n_updates, [], model.replay_buffer.sample
    monkeypatch.setattr(model.replay_buffer, "sample", lambda n, env=None: sizes.append(n) or sample(n, env=env))
    model.train(gradient_steps=2)
    model.train(1, 3)
    model.batch_size = 5
    model.train(gradient_steps=1)
    assert sizes == [4, 4, 3, 5] and model._n_updates == updates + 4


def test_optimizer_class_and_dimensions():
    kwargs = dict(optimizer_class=th.optim.Adam, optimizer_kwargs=dict(eps=1e-5), deter=16, units=12, actor_unimix=0.01)
    model = counter_model(policy_kwargs=kwargs)
    assert isinstance(model.policy.optimizer, th.optim.Adam) and model.policy.optimizer.param_groups[0]["eps"] == 1e-5
    assert model.policy.size.deter == 16 and model.policy.actor.mlp[0][0].out_features == 12
    assert model.policy_kwargs is kwargs and "model_size" not in kwargs
    assert model.learn(60)._n_updates > 0


def test_actor_unimix_floors_the_probabilities():
    model = counter_model(policy_kwargs=dict(actor_unimix=0.2))
    with th.no_grad():
        model.policy.actor.output.bias[0] = 50.0
        probs = model.policy.actor(th.zeros(1, model.policy.size.features_dim)).probs
    np.testing.assert_allclose(probs[0, 0], [0.85, 0.05, 0.05, 0.05], rtol=1e-4)


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
    values = spaces.Box(-10.0, 10.0, (2, 3, 4), np.float32)  # no image, though of three dimensions
    DreamerV3("MlpPolicy", VecNormalize(DummyVecEnv([lambda: NoiseEnv(values, ACTION_SPACES["discrete"])])), **TINY)
    fresh = spaces.Dict({"camera": IMAGE, "position": VECTOR})
    rest = VecNormalize(DummyVecEnv([lambda: NoiseEnv(fresh, ACTION_SPACES["discrete"])]), norm_obs_keys=["position"])
    assert DreamerV3("MultiInputPolicy", rest, **TINY).learn(60)._n_updates > 0


def test_construction_is_silent_and_light(recwarn):
    model = DreamerV3("MlpPolicy", "CartPole-v1", model_size="debug", device="cpu")
    assert model.replay_buffer.observations.size == 0 and not recwarn.list
    assert isinstance(model.replay_buffer, SequenceReplayBuffer)
    assert (model.batch_size, model.batch_length, model.training_ratio, model.learning_starts) == (16, 64, 512, 1024)
    auto = DreamerV3("MlpPolicy", "CartPole-v1", device="cpu")
    assert auto.policy.size.deter == 512


@pytest.mark.slow
def test_compile_gives_the_same_numbers():
    plain, compiled = (counter_model(compile=switch, training_ratio=8) for switch in (False, True))
    for model in (plain, compiled):
        model.learn(45)
    for p, q in zip(plain.policy.parameters(), compiled.policy.parameters(), strict=True):
        assert th.allclose(p, q, atol=1e-4)


def test_a_debt_is_paid_without_a_warning():
    """A learn() that is too short to train makes the updates that a stop has left undone, and says nothing."""
    model = DreamerV3("MlpPolicy", counter_envs(), seed=0, **{**TINY, "learning_starts": 0, "training_ratio": 64})
    model.learn(60, callback=lambda local, _: local["self"].num_timesteps < 48)
    assert model._train_ratio.owed >= 1
    n_updates, model.learning_starts = model._n_updates, 24
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(6)
    assert model._n_updates > n_updates


@pytest.mark.parametrize(("n_envs", "steps", "rows"), [(1, 50, 51), (4, 200, 51)])
def test_a_run_whose_windows_never_fill_says_so(n_envs, steps, rows):
    env = DummyVecEnv([Endless] * n_envs)
    model = DreamerV3("MlpPolicy", env, **{**TINY, "learning_starts": 0, "batch_length": 64})
    with pytest.warns(UserWarning, match=rf"No update was made: {steps} .* {rows} rows, a window needs 65") as warned:
        model.learn(steps)
    assert len(warned) == 1 and model._n_updates == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(steps, reset_num_timesteps=False)
    assert model._n_updates > 0


def test_a_debt_is_paid_at_the_learning_rate_of_its_steps():
    rates = [(40, 1e-3), (60, 1e-5)]
    arguments = {**TINY, "learning_starts": 0, "training_ratio": 64, "learning_rate": rates, "lr_warmup_steps": 0}
    model = DreamerV3("MlpPolicy", counter_envs(), seed=0, **arguments)
    model.learn(90, callback=lambda local, _: local["self"].num_timesteps < 75)  # ends at step 75
    assert model._train_ratio.owed >= 1
    used, update = [], model._update_learning_rate
    model._update_learning_rate = lambda optimizer: (update(optimizer), used.append(optimizer.param_groups[0]["lr"]))
    owed = int(model._train_ratio.owed)
    model.learn(6)  # begins at step 0, where the rate is 1e-3
    assert used[:owed] == [1e-5] * owed and used[owed:] == [1e-3] * (len(used) - owed) and model.num_timesteps == 6
