"""The training ratio is met exactly; learning-rate schedules, warm-up and scaling with the ranks."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.utils import LinearSchedule

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.envs import CounterEnv
from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.common.schedules import TrainRatio, lr_scaling_factor, warmup_factor
from tests.support.helpers import TINY, counter_envs, counter_model


def record_calls(model: DreamerV3) -> list[int]:
    """Record the number of updates of each call of ``train``."""
    calls: list[int] = []
    right = model.train

    def train(gradient_steps: int, batch_size: int) -> None:
        calls.append(gradient_steps)
        right(gradient_steps, batch_size)

    model.train = train
    return calls


# Batch 4 x 8 = 32 rows, 3 environments, learning_starts 24, 120 steps. A window needs 9 rows. With train_freq 1 the first
# moment with both is after 9 vector steps (27 > 24): 93 steps count. With train_freq 4 it is the end of the third
# rollout (36 steps): 84 count. Updates = 1 + floor(counted * ratio / 32).
@pytest.mark.parametrize(
    ("ratio", "train_freq", "expected"),
    [
        (0.5, 1, 2),
        (8, 1, 24),
        (32, 1, 94),
        (100, 1, 291),
        (0.5, 4, 2),
        (8, 4, 22),
        (32, 4, 85),
        (100, 4, 263),
    ],
)
def test_training_ratio_is_met_exactly(ratio, train_freq, expected):
    model = counter_model(training_ratio=ratio, train_freq=train_freq, imagination_horizon=1)
    calls = record_calls(model)
    model.learn(120)
    assert model._n_updates == sum(calls) == expected
    assert calls[0] == 1  # training starts with exactly one update
    assert max(calls) <= -(-3 * train_freq * ratio // 32)  # no burst of updates later


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 2), (8, 24), (100, 291)])
def test_training_ratio_after_save_and_load(ratio, expected, tmp_path):
    """Half of the steps before, half after: as many updates as without the interruption."""
    model = counter_model(training_ratio=ratio, imagination_horizon=1)
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded._n_updates == expected


@pytest.mark.filterwarnings("ignore:`learn` goes on:UserWarning")
def test_no_burst_after_load_without_replay_buffer(tmp_path):
    model = counter_model(training_ratio=32)
    model.learn(60)
    before = model._n_updates
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), device="cpu")
    calls = record_calls(loaded)
    loaded.learn(60, reset_num_timesteps=False)  # 8 vector steps fill a window, 12 more count
    assert calls[0] == 1 and max(calls) == 3
    assert loaded._n_updates - before == 1 + 3 * 12


@pytest.mark.parametrize("reset_num_timesteps", [False, True])
@pytest.mark.parametrize("train_freq", [(1, "episode"), 1000])
def test_a_run_that_is_stopped_at_each_episode_trains_in_the_next(train_freq, reset_num_timesteps):
    settings = {**TINY, "train_freq": train_freq, "learning_starts": 9, "training_ratio": 16}
    model = DreamerV3("MlpPolicy", CounterEnv(20), seed=0, **settings)
    made = []
    for _ in range(6):
        model.learn(1000, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=reset_num_timesteps)
        made.append(model._n_updates)
    # Half an update per step. After the first stop one update is due. A reset drops fractions of an update.
    assert made == [0, 1, 11, 21, 31, 41] if not reset_num_timesteps else made == [0, 1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore:`learn` goes on:UserWarning")
def test_pending_updates_wait_for_a_buffer(tmp_path):
    settings = {**TINY, "train_freq": 1000, "learning_starts": 9, "training_ratio": 32}
    model = DreamerV3("MlpPolicy", CounterEnv(20), seed=0, **settings)
    for _ in range(2):
        model.learn(1000, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
    assert (model._n_updates, model._train_ratio.owed) == (1, 20)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    for loads, expected in ((True, 21), (False, 1)):
        loaded = DreamerV3.load(tmp_path / "model", env=CounterEnv(20))
        if loads:
            loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.learn(1000, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
        assert loaded._n_updates == expected


def test_ratio_is_an_exact_decimal():
    train_ratio = TrainRatio()
    train_ratio.set_rate(0.1, 1)
    train_ratio.add_steps(1, True)
    train_ratio.count_update()
    made = 0
    for _ in range(1000):
        for _ in range(train_ratio.add_steps(1, True)):
            train_ratio.count_update()
            made += 1
    assert made == 100 and train_ratio.owed == 0
    assert train_ratio.updates_in(25) == 2 and train_ratio.updates_per_step == Fraction(1, 10)


def test_extra_updates_are_not_deducted():
    train_ratio = TrainRatio()
    train_ratio.set_rate(0.5, 1)
    train_ratio.add_steps(1, True)
    train_ratio.count_update()
    train_ratio.add_steps(1, True)
    for _ in range(3):
        train_ratio.count_update()
    assert train_ratio.owed == Fraction(1, 2)


def test_warmup():
    assert [warmup_factor(n, 4) for n in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


@pytest.mark.parametrize(
    ("scaling", "n_ranks", "progress", "factor"),
    [
        ("sqrt", 4, 0.0, 2.0),
        ("linear", 4, 0.0, 4.0),
        (None, 4, 0.0, 1.0),
        ("linear", 1, 0.5, 1.0),
        ("sqrt+priming", 1, 0.0, 1.0),
        ("sqrt+priming", 4, 0.0, 0.4),
        ("sqrt+priming", 4, 0.05, 0.4),
        ("sqrt+priming", 4, 0.075, 1.2),
        ("linear+priming", 4, 0.1, 4.0),
        ("linear+priming", 4, 1.0, 4.0),
    ],
)
def test_lr_scaling_factor(scaling, n_ranks, progress, factor):
    assert lr_scaling_factor(scaling, n_ranks, progress) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("optimizer_class", [None, th.optim.Adam, th.optim.SGD])
def test_learning_rate_is_schedule_times_warmup(optimizer_class):
    policy_kwargs = {} if optimizer_class is None else dict(optimizer_class=optimizer_class)
    model = counter_model(
        learning_rate=lambda progress: 0.01 * progress, lr_warmup_steps=10, training_ratio=32, policy_kwargs=policy_kwargs
    )
    seen = []
    right = model.policy.optimizer.step

    def step(*args):
        seen.append((model._current_progress_remaining, model.policy.optimizer.param_groups[0]["lr"]))
        return right(*args)

    model.policy.optimizer.step = step
    model.learn(90)
    # Update t has factor (t - 1) / 10. The schedule depends on the environment steps.
    assert len(seen) == 1 + 63
    for t, (progress, rate) in enumerate(seen, start=1):
        assert rate == pytest.approx(0.01 * progress * min(1.0, (t - 1) / 10))
    assert seen[0][1] == 0.0 and 0.0 <= seen[-1][0] < 0.05


def rates_of(model: DreamerV3, total_timesteps: int) -> list[tuple[int, list[float]]]:
    """(environment steps, learning rate of each group) at each update."""
    seen = []
    right = model.policy.optimizer.step

    def step(*args):
        seen.append((model.num_timesteps, [group["lr"] for group in model.policy.optimizer.param_groups]))
        return right(*args)

    model.policy.optimizer.step = step
    model.learn(total_timesteps)
    return seen


@pytest.mark.parametrize("optimizer_class", [LaProp, th.optim.Adam])
def test_parts_have_their_own_rates(optimizer_class, tmp_path):
    kwargs = dict(optimizer_class=optimizer_class, optimizer_kwargs=dict(lr_scale=dict(actor=0.5, critic=0.0)))
    model = counter_model(learning_rate=1e-2, lr_warmup_steps=4, training_ratio=32, policy_kwargs=kwargs)
    parts = {
        name: [p.clone() for p in getattr(model.policy, name).parameters()] for name in ("world_model", "actor", "critic")
    }
    seen = rates_of(model, 60)
    for t, (_, rates) in enumerate(seen):
        assert rates == pytest.approx([factor * 1e-2 * min(1.0, t / 4) for factor in (1.0, 0.5, 0.0)])
    moved = {
        name: any(not th.equal(p, q) for p, q in zip(before, getattr(model.policy, name).parameters(), strict=True))
        for name, before in parts.items()
    }
    assert moved == {"world_model": True, "actor": True, "critic": False}
    model.policy.optimizer.__dict__.pop("step")
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), device="cpu")
    assert [group["lr_scale"] for group in loaded.policy.optimizer.param_groups] == [1.0, 0.5, 0.0]
    assert rates_of(loaded, 60)[-1][1] == pytest.approx([1e-2, 5e-3, 0.0])


@pytest.mark.parametrize("lr_scale", [dict(encoder=1.0), dict(actor=-1.0), dict(critic="fast")])
def test_bad_lr_scale(lr_scale):
    with pytest.raises(ValueError, match="`lr_scale` must give world_model, actor or critic a factor"):
        counter_model(policy_kwargs=dict(optimizer_kwargs=dict(lr_scale=lr_scale)))


def test_piecewise_learning_rate(tmp_path):
    points = [(30, 1e-4), (60, 1e-2)]
    model = counter_model(learning_rate=points, lr_warmup_steps=0, training_ratio=32)
    for steps, rates in rates_of(model, 90):
        share = min(max((steps - 30) / 30, 0.0), 1.0)
        assert rates == pytest.approx([1e-4 + share * (1e-2 - 1e-4)])
    model.policy.optimizer.__dict__.pop("step")
    model.save(tmp_path / "model")
    assert np.array_equal(DreamerV3.load(tmp_path / "model").learning_rate, points)
    for bad in ([1e-4, 1e-3], [(0, 1e-4), (0, 1e-3)], [(0, -1.0)]):
        with pytest.raises(ValueError, match="`learning_rate` as a list"):
            counter_model(learning_rate=bad)


def test_linear_schedule_of_sb3():
    model = counter_model(learning_rate=LinearSchedule(1e-2, 1e-3, 0.5), lr_warmup_steps=0, training_ratio=32)
    _, rates = rates_of(model, 90)[-1]
    assert rates == pytest.approx([1e-3])


def test_attributes_set_between_learns_count():
    model = counter_model(training_ratio=32)
    model.learn(60)
    before = model._n_updates
    model.training_ratio, model.gamma, model.batch_length = 8, 0.5, 4
    model.learn(60, reset_num_timesteps=False)
    assert model._n_updates - before == 60 * 8 // 16
    assert model.loss_module.gamma == 0.5 and model.replay_buffer.batch_length == 4
    model.gamma = 2.0
    with pytest.raises(ValueError, match="`gamma`"):
        model.learn(60)


def test_duration_is_announced_once_per_learn(capsys):
    model = counter_model(training_ratio=32, verbose=1)
    capsys.readouterr()
    model.learn(90, log_interval=None)
    model.learn(90, log_interval=None)
    lines = [line for line in capsys.readouterr().out.splitlines() if "per update" in line]
    assert len(lines) == 2
    # 90 steps make 1 + 63 updates: the first after 27 steps, three with each vector step.
    assert int(re.search(r"about (\d+) updates", lines[0]).group(1)) == 64
    assert all(word in lines[0] for word in ("model_size", "training_ratio", "device", "cpu"))
    silent = counter_model(training_ratio=32)
    capsys.readouterr()
    silent.learn(60)
    assert capsys.readouterr().out == ""
