"""Averages of metrics over updates, and the duration of updates."""

import pytest
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_dreamer.common import metrics
from sb3_dreamer.common.metrics import MetricAverager, UnstableTrainingError, UpdateClock


def test_metric_averager_waits_for_the_flush():
    averager = MetricAverager()
    assert averager.flush() == {}
    values = th.tensor([1.0, 4.0])
    averager.add(("a", "b"), values)
    values[:] = th.tensor([2.0, 0.0])  # the memory that a captured update writes to
    averager.add(("a", "b"), values)
    assert averager.means() == averager.flush() == {"a": 1.5, "b": 2.0}
    assert averager.flush() == {}


def test_a_record_is_the_mean_and_leaves_the_sums():
    averager, logger = MetricAverager(), Logger(None, [])
    assert averager.record(logger) == {} and not logger.name_to_value
    for value in (1.0, 2.0, 6.0):
        averager.add(("loss",), th.tensor([value]))
    assert averager.record(logger) == averager.record(logger) == {"loss": 3.0}
    assert logger.name_to_value == {"loss": 3.0} and averager.count == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_an_error_and_is_forgotten(bad):
    averager, logger = MetricAverager(), Logger(None, [])
    averager.add(("good", "bad"), th.tensor([1.0, 2.0]))
    averager.add(("good", "bad"), th.tensor([1.0, bad]))
    with pytest.raises(UnstableTrainingError, match=f"`bad` became {bad}: lower `learning_rate`"):
        averager.record(logger)
    assert issubclass(UnstableTrainingError, ValueError)  # which RL Zoo prunes
    assert averager.count == 0
    averager.add(("good", "bad"), th.tensor([1.0, 4.0]))
    assert averager.record(logger) == {"good": 1.0, "bad": 4.0}


def test_the_clock_counts_the_second_to_the_fifth_update(monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    clock, spoken = UpdateClock(), []
    for seconds in (100.0, 1.0, 2.0, 3.0, 6.0, 50.0, 50.0):  # the first one is the warm-up
        now += 1000.0  # the time of the environment is not counted
        clock.start()
        now += seconds
        spoken.append(clock.stop(updates_left=1000))
    assert spoken == [None] * 4 + [3.0] + [None] * 2
    assert clock.message(3.0, 33, th.device("cpu")).startswith(
        "3 s per update, about 40 updates in this learn(): about 2.0 min on cpu"
    )


def test_a_run_of_days_is_announced_after_the_second_update(monkeypatch):
    """With images on a CPU an update may take 34 s: nobody should wait for five of them to learn that."""
    now = 0.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    clock, spoken = UpdateClock(), []
    for _ in range(4):
        clock.start()
        now += 34.0
        spoken.append(clock.stop(updates_left=50_000))
    assert spoken == [None, 34.0, None, None]
    message = clock.message(34.0, 50_000, th.device("cpu"))
    assert "about 19.7 days" in message and 'preset("small")' in message
    assert "about 9.5 hours" in clock.message(34.0, 1000, th.device("cpu"))
