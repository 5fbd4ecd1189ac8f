"""The training ratio is paid exactly; learning-rate warm-up; averages of metrics."""

import re
import time
from fractions import Fraction

import pytest
import torch as th

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.utils import MetricAverager, TrainRatio, UpdateClock, warmup_factor
from tests.helpers import counter_envs, counter_model


def record_calls(model: DreamerV3) -> list[int]:
    """Note how many updates each call of ``train`` makes."""
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
def test_training_ratio_is_paid_exactly(ratio, train_freq, expected):
    model = counter_model(training_ratio=ratio, train_freq=train_freq, imagination_horizon=1)
    calls = record_calls(model)
    model.learn(120)
    assert model._n_updates == sum(calls) == expected
    assert calls[0] == 1  # the first moment makes exactly one update
    assert max(calls) <= -(-3 * train_freq * ratio // 32)  # and there is no burst later


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 2), (8, 24), (100, 291)])
def test_training_ratio_after_save_and_load(ratio, expected, tmp_path):
    """Half before, half after: the same number as without the break."""
    model = counter_model(training_ratio=ratio, imagination_horizon=1)
    model.learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DreamerV3.load(tmp_path / "model", env=counter_envs(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded._n_updates == expected


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


def test_ratio_is_read_as_written():
    account = TrainRatio()
    account.set_rate(0.1, 1)
    account.tick(1, True)
    account.pay()
    made = 0
    for _ in range(1000):
        for _ in range(account.tick(1, True)):
            account.pay()
            made += 1
    assert made == 100 and account.owed == 0
    assert account.updates_in(25) == 2 and account.updates_per_step == Fraction(1, 10)


def test_updates_by_hand_are_gifts():
    account = TrainRatio()
    account.set_rate(0.5, 1)
    account.tick(1, True)
    account.pay()
    account.tick(1, True)
    for _ in range(3):
        account.pay()
    assert account.owed == Fraction(1, 2)


def test_warmup():
    assert [warmup_factor(n, 4) for n in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


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
    # Update t has (t - 1) / 10 of the schedule; the schedule follows the steps.
    assert len(seen) == 1 + 63
    for t, (progress, rate) in enumerate(seen, start=1):
        assert rate == pytest.approx(0.01 * progress * min(1.0, (t - 1) / 10))
    assert seen[0][1] == 0.0 and 0.0 <= seen[-1][0] < 0.05


def test_metric_averager_waits_for_the_flush():
    averager = MetricAverager()
    assert averager.flush() == {}
    averager.add({"a": th.tensor(1.0), "b": th.tensor(4.0)})
    averager.add({"a": th.tensor(2.0), "b": th.tensor(0.0)})
    assert averager.means() == averager.flush() == {"a": 1.5, "b": 2.0}
    assert averager.flush() == {}


def test_update_clock_speaks_once():
    clock, spoken = UpdateClock(), []
    for n in range(7):
        time.sleep(0.02)  # the environment's time does not count
        clock.start()
        time.sleep(0.05 if n == 0 else 0.001)  # nor does the first update
        spoken.append(clock.stop())
    assert [seconds is not None for seconds in spoken] == [False] * 4 + [True] + [False] * 2
    assert 0.001 <= spoken[4] < 0.02


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
