"""Saving and loading: the same update after a break, readable errors."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.helpers import TINY, counter_envs, counter_model


@pytest.fixture
def trained():
    model = counter_model(training_ratio=8, learning_rate=1e-3, lr_warmup_steps=5)
    return model.learn(90)


def test_resume_is_bit_equal(trained, tmp_path):
    """Same buffer, same random numbers: same updates."""
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded._n_updates == trained._n_updates and loaded.num_timesteps == 90
    assert loaded._train_ratio.owed == trained._train_ratio.owed
    for model in (trained, loaded):
        th.manual_seed(1)
        np.random.seed(1)
        model._logger = trained.logger
        model.train(5, 4)
    for (name, p), q in zip(trained.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True):
        assert th.equal(p, q), name
    for p, q in zip(trained.policy.optimizer.state.values(), loaded.policy.optimizer.state.values(), strict=True):
        assert th.equal(p["exp_avg_sq"], q["exp_avg_sq"])
    np.testing.assert_array_equal(trained.replay_buffer.deter, loaded.replay_buffer.deter)


def test_arguments_survive(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model")
    for name in ("batch_length", "training_ratio", "imagination_horizon", "agc_clip", "model_size", "policy_kwargs", "seed"):
        assert getattr(loaded, name) == getattr(trained, name)
    assert loaded.replay_buffer.observations.size == 0  # loading to look at a model costs no memory
    changed = DreamerV3.load(tmp_path / "model", env=counter_envs(), buffer_size=300, training_ratio=4, train_freq=2)
    assert changed.replay_buffer.buffer_size == 100 and changed.training_ratio == 4
    assert changed._train_ratio.updates_per_step.denominator == 8
    with pytest.raises(ValueError, match="policy kwargs"):
        DreamerV3.load(tmp_path / "model", policy_kwargs=dict(deter=16))


def test_other_number_of_environments(trained, tmp_path):
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    from sb3_dreamer.common.envs import CounterEnv

    loaded = DreamerV3.load(tmp_path / "model", env=CounterEnv(), device="cpu")
    own = loaded.replay_buffer
    with pytest.raises(ValueError, match="another number of environments: 3, the model has 1"):
        loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer is own  # nothing is lost
    updates = loaded._n_updates
    assert loaded.learn(60, reset_num_timesteps=False)._n_updates > updates


def test_buffer_loads_where_there_is_none(trained, tmp_path):
    trained.save_replay_buffer(tmp_path / "buffer")
    before = trained.replay_buffer
    trained.replay_buffer = None
    trained.load_replay_buffer(tmp_path / "buffer")
    for name in ("observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(trained.replay_buffer, name), getattr(before, name))


def test_buffer_of_another_size(trained, tmp_path):
    trained.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"another `model_size`: \(8, 2, 4\), the model has \(16, 2, 4\)"):
        counter_model(policy_kwargs=dict(deter=16)).load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="another `replay_context`: True, the model has False"):
        counter_model(replay_context=False).load_replay_buffer(tmp_path / "buffer")
    other = DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", 3), **TINY)
    with pytest.raises(ValueError, match="observations of another space"):
        other.load_replay_buffer(tmp_path / "buffer")
    longer = counter_model(batch_length=12, batch_size=3)
    longer.load_replay_buffer(tmp_path / "buffer")
    assert longer.replay_buffer.sample(3).rewards.shape == (3, 12)


def test_continue_in_a_new_process_opens_an_episode(trained, tmp_path):
    trained.save(tmp_path / "model")
    trained.save_replay_buffer(tmp_path / "buffer")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(offset=50), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    newest = (loaded.replay_buffer.counts - 1) % loaded.replay_buffer.buffer_size
    loaded.learn(3, reset_num_timesteps=False)
    everywhere = np.arange(3)
    assert loaded.replay_buffer.dones[newest, everywhere].all()
    assert loaded.replay_buffer.is_first[newest + 1, everywhere].all()


def test_policy_save_and_load(trained, tmp_path):
    trained.policy.save(tmp_path / "policy.pt")
    loaded = DreamerPolicy.load(tmp_path / "policy.pt", device="cpu")
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], trained.policy.predict(observations, deterministic=True)[0]
    )


def test_parameters(trained):
    params = copy.deepcopy(trained.get_parameters())
    assert set(params) == {"policy", "policy.optimizer"}
    other = counter_model()
    other.set_parameters(params)
    for p, q in zip(other.policy.parameters(), trained.policy.parameters(), strict=True):
        assert th.equal(p, q)
    assert all(value.is_floating_point() and value.numel() for value in params["policy"].values())
    pointers = [value.data_ptr() for value in trained.policy.state_dict().values()]
    assert len(pointers) == len(set(pointers))  # no entry is an alias of another
    with pytest.raises(RuntimeError):
        counter_model(policy_kwargs=dict(deter=16)).set_parameters(params)
    copied = copy.deepcopy(trained.policy)
    obs = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(copied.predict(obs, deterministic=True)[0], trained.predict(obs, deterministic=True)[0])


def test_file_stays_small(trained, tmp_path):
    trained.save(tmp_path / "model")
    n_bytes = 4 * sum(value.numel() for value in trained.policy.state_dict().values())
    assert (tmp_path / "model.zip").stat().st_size < 4 * n_bytes + 100_000  # weights and two moments, no buffer, no copies


def test_seeds_reproduce_a_run_bit_for_bit():
    def run(seed):
        model = DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=seed), seed=seed, **{**TINY, "training_ratio": 8})
        model.learn(80)
        return model

    first, second, other = run(3), run(3), run(4)
    for (name, p), q in zip(first.policy.state_dict().items(), second.policy.state_dict().values(), strict=True):
        assert th.equal(p, q), name
    np.testing.assert_array_equal(first.replay_buffer.observations, second.replay_buffer.observations)
    np.testing.assert_array_equal(first.replay_buffer.stoch, second.replay_buffer.stoch)
    assert not th.equal(next(first.policy.parameters()), next(other.policy.parameters()))
