"""Saving and loading: exact resume, readable errors."""

import copy
import io
import pathlib
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_dreamer import DreamerV3
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.support.helpers import TINY, counter_envs, counter_model
from tests.support.replay import check_buffer, check_windows


@pytest.fixture
def trained():
    model = counter_model(training_ratio=8, learning_rate=1e-3, lr_warmup_steps=5)
    return model.learn(90)


def test_resume_is_bit_equal(trained, tmp_path):
    """The same buffer and random state give the same updates."""
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


def test_arguments_are_restored(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model")
    for name in ("batch_length", "training_ratio", "imagination_horizon", "agc_clip", "model_size", "policy_kwargs", "seed"):
        assert getattr(loaded, name) == getattr(trained, name)
    assert loaded.replay_buffer.observations.size == 0  # loading alone allocates no replay memory
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
    assert loaded.replay_buffer is own  # the buffer is kept
    updates = loaded._n_updates
    with pytest.warns(UserWarning, match="goes on after 90 steps with an empty replay buffer"):
        loaded.learn(60, reset_num_timesteps=False)
    assert loaded._n_updates > updates


def test_buffer_loads_into_a_model_without_one(trained, tmp_path):
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


def test_exclude_and_include(trained, tmp_path):
    """Excluded attributes are restored to the values of the constructor."""
    trained.save(tmp_path / "model", exclude=["learning_rate"])
    loaded = DreamerV3.load(tmp_path / "model")
    assert (trained.learning_rate, loaded.learning_rate) == (1e-3, 4e-5)
    assert loaded.ent_coef == trained.ent_coef and loaded.num_timesteps == 90
    trained.save(tmp_path / "more", include=["_last_state"])
    for name, holds_it in (("model", False), ("more", True)):
        assert ("_last_state" in load_from_zip_file(tmp_path / name)[0]) == holds_it


@pytest.mark.parametrize("kind", [str, pathlib.Path, "open file", "memory"], ids=["str", "Path", "file", "memory"])
def test_all_kinds_of_files(kind, trained, tmp_path):
    path = tmp_path / "model.zip"
    if kind == "memory":
        file = io.BytesIO()
        trained.save(file)
        file.seek(0)
        loaded = DreamerV3.load(file)
    elif kind == "open file":
        with open(path, "wb") as file:
            trained.save(file)
        with open(path, "rb") as file:
            loaded = DreamerV3.load(file)
    else:
        trained.save(kind(path))
        loaded = DreamerV3.load(kind(path))
    for p, q in zip(trained.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(p, q)
    buffer = io.BytesIO()
    trained.save_replay_buffer(buffer)
    buffer.seek(0)
    before = trained.replay_buffer
    trained.load_replay_buffer(buffer)
    np.testing.assert_array_equal(trained.replay_buffer.observations, before.observations)


def test_bad_files(trained, tmp_path):
    with pytest.raises(FileNotFoundError):
        DreamerV3.load(tmp_path / "nothing")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="wasn't a zip-file"):
        DreamerV3.load(tmp_path / "broken.zip")
    trained.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="wasn't a zip-file"):
        DreamerV3.load(tmp_path / "buffer.pkl")


def test_set_env(trained):
    """As for SAC: the same number of environments; the current episode is abandoned unless ``force_reset=False``."""
    rows = trained.replay_buffer.filled.copy()
    trained.set_env(counter_envs(offset=50))
    assert trained._last_obs is None
    trained.learn(33, reset_num_timesteps=False)
    assert trained.num_timesteps == 123
    newest_before, everywhere = rows - 1, np.arange(3)
    assert trained.replay_buffer.dones[newest_before, everywhere].all()
    assert trained.replay_buffer.is_first[rows, everywhere].all()
    assert trained.replay_buffer.observations[rows, everywhere, 0].tolist() == [50, 150, 250]
    trained.set_env(trained.env, force_reset=False)
    assert trained._last_obs is not None
    with pytest.raises(AssertionError, match="number of environments"):
        trained.set_env(make_vec_env("sb3_dreamer/Counter-v0", 2))
    with pytest.raises(ValueError, match="spaces do not match"):
        trained.set_env(make_vec_env("CartPole-v1", 3))


def test_learn_twice(trained):
    updates, rows = trained._n_updates, trained.replay_buffer.filled.sum()
    trained.learn(30)
    assert trained.num_timesteps == 30 and trained._episode_num > 0
    assert trained._n_updates > updates and trained.replay_buffer.filled.sum() > rows
    trained.learn(30, reset_num_timesteps=False)
    assert trained.num_timesteps == 60


def test_nothing_warns(trained, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.save(tmp_path / "model")
        trained.save_replay_buffer(tmp_path / "buffer")
        trained.policy.save(tmp_path / "policy")
        loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), device="cpu")
        loaded.load_replay_buffer(tmp_path / "buffer")
        DreamerPolicy.load(tmp_path / "policy")
        loaded.learn(30)
        loaded.learn(30, reset_num_timesteps=False)


def test_extreme_weights(trained, tmp_path):
    """Large weights: actions are finite and deterministic, and the same after loading."""
    params = copy.deepcopy(trained.policy.state_dict())
    trained.policy.load_state_dict({name: th.rand_like(value) for name, value in params.items()})
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    before, state = trained.predict(obs, deterministic=True)
    assert all(np.isfinite(part).all() for part in state)
    trained.save(tmp_path / "model")
    np.testing.assert_array_equal(DreamerV3.load(tmp_path / "model").predict(obs, deterministic=True)[0], before)


def test_compiled_policy(trained, tmp_path):
    """``th.compile(model.policy)``, as SB3's own tests do: the file contains the usual names."""
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    before = trained.predict(obs, deterministic=True)[0]
    trained.policy = th.compile(trained.policy)
    trained.learn(30, reset_num_timesteps=False)
    trained.save(tmp_path / "model")
    after = trained.predict(obs, episode_start=np.ones(20), deterministic=True)[0]
    assert before.shape == after.shape
    loaded = DreamerV3.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], after)
    assert not any(name.startswith("_orig_mod") for name in loaded.policy.state_dict())


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.SGD])
def test_other_optimizers(optimizer_class, tmp_path):
    model = counter_model(policy_kwargs=dict(optimizer_class=optimizer_class), training_ratio=8).learn(45)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs())
    assert type(loaded.policy.optimizer) is optimizer_class
    assert loaded.learn(30)._n_updates > model._n_updates


def test_images_and_channel_order(tmp_path):
    """A model on channels-last images loads with its environment and without."""
    env = make_vec_env("sb3_dreamer/PixelCatch-v0", 2, env_kwargs=dict(image_size=16))
    model = DreamerV3("CnnPolicy", env, seed=0, **TINY).learn(40)
    model.save(tmp_path / "model")
    obs = env.reset()
    expected = model.predict(obs, deterministic=True)[0]
    for loaded in (DreamerV3.load(tmp_path / "model"), DreamerV3.load(tmp_path / "model", env=env)):
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    assert loaded.learn(40)._n_updates > model._n_updates


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            dict(gradient_steps=4),
            r"`gradient_steps` is no argument of DreamerV3, got gradient_steps=4; its counterpart: `training_r",
        ),
        (dict(n_steps=3), "`n_steps` is no argument of DreamerV3"),
        (dict(use_sde=True), "`use_sde` is no argument of DreamerV3"),
        (dict(trainin_ratio=4), r"DreamerV3.load\(\) got an unexpected keyword argument 'trainin_ratio'"),
        (dict(policy="CnnPolicy"), r"got an unexpected keyword argument 'policy'"),
        (dict(num_timesteps=3), r"got an unexpected keyword argument 'num_timesteps'"),
    ],
)
def test_load_rejects_what_the_constructor_rejects(kwargs, message, trained, tmp_path):
    trained.save(tmp_path / "model")
    with pytest.raises(TypeError, match=message):
        DreamerV3.load(tmp_path / "model", **kwargs)
    with pytest.raises(ValueError, match="`gamma` must be a number between"):
        DreamerV3.load(tmp_path / "model", gamma=2)
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), gamma=0.5, stats_window_size=5, seed=1, verbose=0)
    assert loaded.gamma == 0.5
    assert loaded.learn(30).ep_info_buffer.maxlen == 5


class WithMore(DreamerV3):
    """A subclass of a user."""

    def __init__(self, *args, bonus=1.0, **kwargs):
        self.bonus = bonus
        super().__init__(*args, **kwargs)


def test_load_accepts_the_arguments_of_a_subclass(tmp_path):
    WithMore("MlpPolicy", counter_envs(), bonus=3.0, **TINY).save(tmp_path / "model")
    assert WithMore.load(tmp_path / "model").bonus == 3.0
    loaded = WithMore.load(tmp_path / "model", bonus=2.0, gamma=0.5)
    assert (loaded.bonus, loaded.gamma) == (2.0, 0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'kwargs'"):
        WithMore.load(tmp_path / "model", kwargs=1)
    with pytest.raises(TypeError, match="`n_steps` is no argument"):
        WithMore.load(tmp_path / "model", n_steps=2)


def rows_of(buffer, env, n):
    """:return: the newest rows of an environment, oldest first, of each array"""
    where = np.arange(buffer.counts[env] - n, buffer.counts[env]) % buffer.buffer_size
    return {name: array[where, env] for name, array in buffer._arrays().items()}


@pytest.mark.parametrize("saved_size", [3000, 75])  # all 90 steps, or as many as fit
@pytest.mark.parametrize("buffer_size", [30, 75, 76, 105, 6000])
def test_buffer_size_at_load_applies_to_the_replay(saved_size, buffer_size, tmp_path):
    saved = counter_model(buffer_size=saved_size, training_ratio=8).learn(90)
    saved.save(tmp_path / "model")
    saved.save_replay_buffer(tmp_path / "buffer")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(offset=50), device="cpu", buffer_size=buffer_size)
    loaded.load_replay_buffer(tmp_path / "buffer")
    old, new = saved.replay_buffer, loaded.replay_buffer
    assert new.buffer_size == buffer_size // 3 == new.observations.shape[0]
    np.testing.assert_array_equal(new.filled, np.minimum(old.filled, buffer_size // 3))
    assert new.full == (new.filled == new.buffer_size).all() and new.pos == (new.counts % new.buffer_size).max()
    for env, n in enumerate(new.filled):
        theirs = rows_of(old, env, n)
        for name, array in rows_of(new, env, n).items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert len(new._queue) <= new._queue.maxlen
    if new.can_sample():
        for _ in range(20):
            indices = new.sample(4).indices
            oldest = (new.counts - new.filled)[indices.envs]
            assert (indices.steps.min(1) > oldest).all() and (indices.steps.max(1) < new.counts[indices.envs]).all()
        assert loaded.learn(60, reset_num_timesteps=False)._n_updates > saved._n_updates
        check_windows(new)
    check_buffer(new)


def test_files_of_an_older_version():
    """A model and its replay, saved before the version that brought `image_keys`; written by the code of `counter_model`."""
    folder = pathlib.Path(__file__).parent / "data"
    model = DreamerV3.load(folder / "model_of_0.1.0", env=counter_envs(offset=10))
    model.load_replay_buffer(folder / "replay_of_0.1.0")
    assert (model._n_updates, model.num_timesteps, model.replay_buffer.counts.tolist()) == (4, 90, [35, 33, 33])
    assert check_buffer(model.replay_buffer) == [[], [], []]
    actions, state = model.predict(np.arange(9, dtype=np.float32).reshape(3, 3), deterministic=True)
    assert actions.tolist() == [0, 0, 0] and np.abs(state[0]).sum() == pytest.approx(4.5504e-4, rel=1e-3)
    model.learn(60, reset_num_timesteps=False)
    assert model._n_updates > 4 and model.num_timesteps == 150
    assert check_buffer(model.replay_buffer) == [[34], [32], [32]]  # new rows started a new episode
