"""Settings that are changed after the constructor take effect before the next update, or are rejected."""

import inspect
import itertools
import warnings
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.dreamerv3 import dreamerv3 as algorithm_module
from sb3_dreamer.dreamerv3.checks import FIXED, SETTINGS_OF_LOOP, SETTINGS_OF_UPDATE
from sb3_dreamer.dreamerv3.fast.captured import CapturedUpdate
from sb3_dreamer.dreamerv3.update import TrainingUpdate
from tests.support.callbacks import CallAt
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY, counter_model
from tests.support.python_graph import PythonGraph

# Far enough from the defaults to have an effect in a short run.
CHANGED: dict[str, Any] = dict(
    learning_rate=3e-2,
    learning_starts=50,
    batch_size=3,
    batch_length=5,
    training_ratio=4,
    imagination_horizon=2,
    gamma=0.5,
    return_lambda=0.1,
    tau=0.9,
    ent_coef=1.0,
    free_nats=0.0,
    loss_scales={"reward": 30.0},
    agc_clip=1e-3,
    lr_warmup_steps=3,
    online_queue=False,
    imagine_last=3,
    precision="bf16",
)
COMMON: dict[str, Any] = dict(training_ratio=8, learning_rate=1e-2, lr_warmup_steps=0)


def setting(name: str, value: Any):
    return lambda model: setattr(model, name, value)


def outcome(model: DreamerV3) -> tuple[int, th.Tensor]:
    return model._n_updates, th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def assert_equal(ours: tuple[int, th.Tensor], theirs: tuple[int, th.Tensor]) -> None:
    assert ours[0] == theirs[0] and th.equal(ours[1], theirs[1])


@pytest.fixture(scope="module")
def unchanged():
    return outcome(counter_model(**COMMON).learn(75))


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_equals_the_constructor_argument(name, unchanged):
    expected = outcome(counter_model(**{**COMMON, name: CHANGED[name]}).learn(75))
    assert expected[0] != unchanged[0] or not th.equal(expected[1], unchanged[1])
    model = counter_model(**COMMON)  # seeds all generators
    setattr(model, name, CHANGED[name])
    assert_equal(outcome(model.learn(75)), expected)
    model = counter_model(**COMMON).learn(75, callback=CallAt(step_0=setting(name, CHANGED[name])))
    if name == "precision":  # the first step acted with the old precision
        assert model.policy.precision == "bf16"
    else:
        assert_equal(outcome(model), expected)


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_acts_in_mid_run(name, unchanged):
    model = counter_model(**COMMON).learn(75, callback=CallAt(step_36=setting(name, CHANGED[name])))
    n_updates, parameters = outcome(model)
    assert n_updates != unchanged[0] or not th.equal(parameters, unchanged[1])


def test_every_argument_of_training_is_a_setting():
    others = {
        "self",
        "policy",
        "env",
        "tensorboard_log",
        "stats_window_size",
        "verbose",
        "seed",
        "device",
        "_init_setup_model",
    }
    names = [*SETTINGS_OF_UPDATE, *SETTINGS_OF_LOOP, *FIXED]
    assert len(names) == len(set(names))
    assert set(inspect.signature(DreamerV3.__init__).parameters) == {*names, *others}


def test_a_change_in_place_takes_effect():
    model = counter_model(loss_scales={"reward": 1.0})
    model.learn(60, callback=CallAt(step_30=lambda model: model.loss_scales.update(reward=7.0)))
    assert model.loss_module.loss_scales["reward"] == 7.0
    model = counter_model(learning_rate=[(0, 1e-3), (60, 1e-3)], lr_warmup_steps=0)
    model.learn(60, callback=CallAt(step_30=lambda model: model.learning_rate.append((61, 0.0))))
    assert model.lr_schedule(61) == 0.0


def test_the_learning_rate_of_the_next_learn():
    model = counter_model(**COMMON).learn(40)
    model.learning_rate = 1e-4
    model.learn(40)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-4


def test_train_freq(monkeypatch):
    model, calls = counter_model(**COMMON), []
    right = model.collect_rollouts
    monkeypatch.setattr(
        model, "collect_rollouts", lambda *args, **kwargs: (calls.append(kwargs["train_freq"]), right(*args, **kwargs))[1]
    )
    model.learn(60, callback=CallAt(step_30=setting("train_freq", 4), step_54=setting("train_freq", (2, "step"))))
    assert [frequency for frequency, _ in calls] == [1] * 10 + [4] * 2 + [2]
    model.train_freq = 5
    assert model.learn(30).train_freq.frequency == 5


def test_pending_updates_follow_the_batch_size():
    """3 environments x 32 / (4 x 8) = 3 updates per step; with batches of 8 x 8 rows 1.5."""
    model = counter_model(training_ratio=32)
    model.learn(60)
    before = model._n_updates
    model.learn(60, callback=CallAt(step_3=setting("batch_size", 8)), reset_num_timesteps=False)
    assert model.num_timesteps == 120
    model.batch_size = 8
    assert model._n_updates - before == 3 * 20
    model.learn(60, reset_num_timesteps=False)
    assert model._n_updates - before == 3 * 20 + 30
    train_ratio = model._train_ratio
    train_ratio.add_steps(3, True)
    owed = train_ratio.owed * 64
    train_ratio.set_rate(1, 32)
    assert train_ratio.owed * 32 == owed


def test_longer_windows_wait_until_one_is_full():
    model = counter_model(**COMMON)
    seen = []
    look = {f"step_{n}": lambda model: seen.append(model._n_updates) for n in range(45, 99, 3)}
    model.learn(96, callback=CallAt(**{**look, "step_42": setting("batch_length", 24)}))
    first = next(i for i, n in enumerate(seen) if n > seen[0])
    # A window now needs 25 rows. Updates pause until one is full.
    assert 0 < first < len(seen) - 1 and model._update.policy is model.policy
    assert model.replay_buffer.batch_length == 24
    with pytest.warns(UserWarning, match="a window needs 2001 .*: no update will be made"):
        model.learn(60, callback=CallAt(step_30=setting("batch_length", 2000)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ent_coef", -1.0, "`ent_coef` must be a number of at least 0.0, got -1.0"),
        ("gamma", 2, "`gamma` must be a number between 0.0 and 1.0, got 2"),
        ("training_ratio", 0, "`training_ratio` must be a positive number, got 0"),
        ("learning_rate", "fast", "`learning_rate` must be a number of at least 0"),
        ("loss_scales", {"rewards": 1.0}, "`loss_scales` has no key 'rewards'"),
        ("precision", "fp16", "`precision` must be one of"),
        ("train_freq", (1, "episode"), "`train_freq` in episodes needs one environment, got 3"),
        ("log_every_updates", 0, "`log_every_updates` must be a whole number of at least 1, got 0"),
        ("distributed_scaling", "square", "`distributed_scaling` must be one of"),
        ("model_size", "nano", "`model_size` cannot change any more, got 'nano' in place of 'debug': the networks are built"),
        ("policy_kwargs", {"deter": 16}, "`policy_kwargs` cannot change any more"),
        ("buffer_size", 300, "`buffer_size` cannot change any more, got 300 in place of 3000: the replay buffer is made"),
        ("replay_context", False, "`replay_context` cannot change any more"),
        ("replay_buffer_class", type("Other", (SequenceReplayBuffer,), {}), "`replay_buffer_class` cannot change any more"),
        ("replay_buffer_kwargs", {"storage": "device"}, "`replay_buffer_kwargs` cannot change any more"),
    ],
)
def test_invalid_settings_are_rejected_before_the_next_update(name, value, message):
    model = counter_model(**COMMON)
    right = getattr(model, name)
    with pytest.raises(ValueError) as error:
        model.learn(60, callback=CallAt(step_33=setting(name, value)))
    assert message in str(error.value)
    updates, rows = model._n_updates, model.replay_buffer.counts.copy()
    assert model.num_timesteps == 33
    with pytest.raises(ValueError):
        model.learn(27, reset_num_timesteps=False)
    assert model._n_updates == updates and (model.replay_buffer.counts == rows).all()
    setattr(model, name, right)
    model.learn(27, reset_num_timesteps=False)  # nothing is lost: as many updates as in an uninterrupted run
    assert model._n_updates == counter_model(**COMMON).learn(60)._n_updates
    assert model.replay_buffer.dones.sum() == counter_model(**COMMON).learn(60).replay_buffer.dones.sum()


def test_a_captured_update_is_rebuilt_when_needed(monkeypatch):
    made, right = [], algorithm_module.make_update

    def make_captured(*args: Any, **kwargs: Any) -> CapturedUpdate:
        made.append(CapturedUpdate(right(*args, **kwargs), PythonGraph))
        return made[-1]

    monkeypatch.setattr(algorithm_module, "make_update", make_captured)
    model = counter_model(**COMMON)
    assert len(made) == 1
    model.learn(60, callback=CallAt(step_33=setting("training_ratio", 16), step_39=setting("learning_rate", 1e-3)))
    assert len(made) == 2  # once for the run
    model.learn(60, callback=CallAt(step_33=setting("ent_coef", 0.5), step_45=setting("tau", 0.5)))
    assert len(made) == 5
    assert [update.update.loss_module.ent_coef for update in made[2:]] == [3e-4, 0.5, 0.5]
    assert [update.update.tau for update in made[2:]] == [0.02, 0.02, 0.5]
    assert model._update is made[-1] and made[-1].capture.key is not None


def falling_ent_coef(model: DreamerV3) -> float:
    return model.loss_module.falling_ent_coef.item()


def test_the_weight_of_the_entropy_falls_over_the_run():
    settings = {**TINY, "training_ratio": 32, "lr_warmup_steps": 0, "ent_coef": "auto"}  # an update every step
    model = DreamerV3("MlpPolicy", NoiseEnv(spaces.Box(-1, 1, (2,)), spaces.Discrete(4)), seed=0, **settings)
    weights = []
    steps = {f"step_{step}": lambda m: weights.append(falling_ent_coef(m)) for step in (50, 100, 200)}
    model.learn(200, callback=CallAt(**steps), log_interval=None)
    # A callback comes before the update of its step.
    assert weights == pytest.approx([0.003 * (50 / 3) ** (1 - step / 200) for step in (49, 99, 199)], rel=1e-5)
    assert 0.003 < model._metrics.means()["actor_critic/ent_coef"] < 0.05


def test_the_entropy_stays_until_returns_differ():
    """FrozenLake without a reward: falling into a hole changes no return. Then one reward is found, in step 101."""
    steps = itertools.count(1)
    env = gym.wrappers.TransformReward(gym.make("FrozenLake-v1"), lambda _: float(next(steps) == 101))
    settings = {**TINY, "training_ratio": 16, "lr_warmup_steps": 0, "ent_coef": "auto"}
    model = DreamerV3("MlpPolicy", env, seed=0, **settings)
    weights = []

    def note(model: DreamerV3) -> None:
        weights.append(falling_ent_coef(model))

    model.learn(120, callback=CallAt(step_99=note, step_120=note), log_interval=None)
    assert weights == pytest.approx([0.05, 0.003], rel=0.1)


def test_compile_in_mid_run():
    model = counter_model()
    model.compile = True
    model._apply_new_settings()
    assert model._update.needs_compile
    model.compile = False
    model._apply_new_settings()
    assert type(model._update) is TrainingUpdate


def test_an_unchanged_model_is_not_rebuilt():
    model = counter_model(policy_kwargs=dict(deter=16), loss_scales={"reward": 2.0}).learn(40)
    update, state, optimizer = model._update, model._last_state, model.policy.optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model._apply_new_settings()
    assert model._update is update
    model.ent_coef = 0.1
    model._apply_new_settings()
    assert model._update is not update and model._last_state is state and model.policy.optimizer is optimizer
