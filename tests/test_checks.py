"""Checks before a model is built or trained: numbers, frequencies, settings that may change."""

import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.dreamerv3 import checks
from tests.support.envs import Endless
from tests.support.helpers import TINY, counter_model

STEP, EPISODE = TrainFrequencyUnit.STEP, TrainFrequencyUnit.EPISODE


@pytest.mark.parametrize("name", checks.RANGES)
def test_every_range_includes_its_bounds_only(name):
    low, high, is_whole = checks.RANGES[name]
    ends = [end for end in (low, high) if end != float("inf")]
    for end in ends:
        checks.check_number(name, end, low, high, is_whole)
        checks.check_number(name, (np.int64 if is_whole else np.float32)(end), low, high, is_whole)
    for bad in (
        low - 1,
        float("nan"),
        True,
        "1",
        None,
        *([low + 0.5] if is_whole else []),
        *([high + 1] if len(ends) == 2 else []),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` must be a (whole )?number"):
            checks.check_number(name, bad, low, high, is_whole)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (4, (4, STEP)),
        (np.int64(4), (4, STEP)),
        ((4, "step"), (4, STEP)),
        ((2, "episode"), (2, EPISODE)),
        (TrainFreq(3, EPISODE), (3, EPISODE)),
    ],
)
def test_a_train_freq_is_converted(given, meant):
    model = SimpleNamespace(train_freq=given, n_envs=1, _ranks=Ranks())
    for _ in range(2):  # converting twice changes nothing
        checks.convert_train_freq(model)
        assert model.train_freq == meant and type(model.train_freq.frequency) is int


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "4", None, (2, "steps"), (2, "step", 1), (0, "episode")])
def test_invalid_train_freq(bad):
    with pytest.raises(ValueError, match="`train_freq` must be a whole number of steps"):
        checks.convert_train_freq(SimpleNamespace(train_freq=bad, n_envs=1, _ranks=Ranks()))


def test_episodes_need_one_environment_and_one_rank():
    several = Ranks()
    several.size = 2
    for n_envs, ranks, what in ((3, Ranks(), "one environment, got 3"), (1, several, "one rank, got 2")):
        model = SimpleNamespace(train_freq=(1, "episode"), n_envs=n_envs, _ranks=ranks)
        with pytest.raises(ValueError, match=what):
            checks.convert_train_freq(model)
        model.train_freq = (1, "step")
        checks.convert_train_freq(model)


@pytest.mark.parametrize("name", checks.FIXED)
def test_arguments_of_networks_and_buffer_cannot_change(name):
    model = counter_model()
    settings = {one: getattr(model, one) for one in checks.FIXED}
    checks.check_unchanged(model, settings)
    checks.check_unchanged(model, {})  # while it is being built
    setattr(model, name, "another")
    with pytest.raises(ValueError, match=f"^`{name}` cannot change any more, got 'another' in place of"):
        checks.check_unchanged(model, settings)


def test_ranks_compare_arguments_that_would_block_them():
    def facts(n_steps=100, **kwargs):
        return checks.rank_invariants(counter_model(**kwargs), n_steps)

    def differing(other):
        return {name for name, value in facts().items() if other[name] != value}

    assert differing(facts()) == set()
    assert differing(facts(n_steps=101)) == {"total_timesteps"}
    assert differing(facts(buffer_size=2000, verbose=1)) == set()  # may differ between ranks
    assert differing(facts(batch_size=5, gamma=0.5)) == {"batch_size", "gamma"}
    assert differing(facts(policy_kwargs=dict(units=12))) == {"policy"}
    assert differing(facts(learning_rate=lambda progress: 4e-5)) == {"learning_rate"}
    ours, theirs = (facts(learning_rate=lambda progress, end=end: end + progress)["learning_rate"] for end in (1.0, 1.0))
    assert ours == theirs == [2.0, 1.5, 1.0]  # functions are compared by their values


def test_numpy_numbers(tmp_path):
    """As from an array or a hyperparameter search: every number, alone and in a tuple, then saved and loaded."""
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


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "learning_starts", "steps", "end"),
    [(1, 1, 60, 50, 50), (1, 1, 40, 40, 40), (1, 1, 40, 41, None), (3, 4, 40, 25, 36), (3, 4, 40, 37, None)],
)
def test_a_run_that_ends_before_training_starts_warns(n_envs, train_freq, learning_starts, steps, end):
    arguments = {**TINY, "learning_starts": learning_starts, "train_freq": train_freq}
    model = DreamerV3("MlpPolicy", make_vec_env("CartPole-v1", n_envs), seed=0, **arguments)
    for _ in range(2):  # each time, because the step count is reset
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
        model.learn(steps, reset_num_timesteps=False)  # the step count continues
    assert model._n_updates > 0


@pytest.mark.parametrize(("n_envs", "steps", "rows"), [(1, 50, 51), (4, 200, 51)])
def test_a_run_without_a_full_window_warns(n_envs, steps, rows):
    env = DummyVecEnv([Endless] * n_envs)
    model = DreamerV3("MlpPolicy", env, **{**TINY, "learning_starts": 0, "batch_length": 64})
    with pytest.warns(UserWarning, match=rf"No update was made: {steps} .* {rows} rows, a window needs 65") as warned:
        model.learn(steps)
    assert len(warned) == 1 and model._n_updates == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(steps, reset_num_timesteps=False)
    assert model._n_updates > 0
