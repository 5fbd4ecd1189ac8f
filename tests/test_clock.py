"""Duration of an update, speed, and shares of time."""

import json

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger, configure

from sb3_dreamer.common import clock as clock_module
from sb3_dreamer.common.clock import TrainingClock, UpdateClock
from sb3_dreamer.common.type_aliases import SequenceIndices
from tests.support.helpers import counter_model


def test_the_clock_counts_the_second_to_the_fifth_update(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now)
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
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now)
    clock, spoken = UpdateClock(), []
    for _ in range(4):
        clock.start()
        now += 34.0
        spoken.append(clock.stop(updates_left=50_000))
    assert spoken == [None, 34.0, None, None]
    message = clock.message(34.0, 50_000, th.device("cpu"))
    assert "about 19.7 days" in message and 'preset("small")' in message
    assert "about 9.5 hours" in clock.message(34.0, 1000, th.device("cpu"))


def test_shares_of_time(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now)
    clock, logger = TrainingClock(), Logger(None, [])
    clock.begin(100)
    for part, seconds in (("environment", 2.0), ("acting", 1.0), ("environment", 3.0), ("update", 4.0)):
        clock.enter(part)
        now += seconds
    counts = np.array([100, 50])
    for first, n_new in (([90, 20], 1), ([80, 30], 0)):  # ages 10 and 30, 20 and 20
        indices = SequenceIndices(np.array(first)[:, None] + np.arange(8), np.array([0, 1]))
        clock.add_update(indices, counts, n_new, n_ranks=1)
    clock.record(logger, 120)  # in the middle of an update
    assert logger.name_to_value == {
        "time/steps_per_second": 2.0,
        "time/updates_per_second": 0.2,
        "time/training_ratio": 1.6,
        "time/share_environment": 0.5,
        "time/share_acting": 0.1,
        "time/share_update": 0.4,
        "replay/age": 20.0,
        "replay/share_new": 0.25,
    }
    logger.name_to_value.clear()
    now += 6.0  # the rest of this update belongs to the next line
    clock.enter("environment")
    now += 2.0
    clock.record(logger, 120)
    assert logger.name_to_value["time/share_update"] == 0.75 and logger.name_to_value["time/updates_per_second"] == 0.0
    assert not {"time/steps_per_second", "time/training_ratio", "replay/age"} & set(logger.name_to_value)


@pytest.mark.parametrize("online_queue", [True, False])
def test_what_a_run_logs(online_queue, tmp_path):
    model = counter_model(training_ratio=16, online_queue=online_queue)
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(200, log_interval=4)
    model.learn(200, log_interval=4, reset_num_timesteps=False)
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(lines) > 6
    for line in lines:
        assert sum(line[f"time/share_{part}"] for part in TrainingClock.PARTS) == pytest.approx(1.0)
        assert min(line[f"time/share_{part}"] for part in TrainingClock.PARTS) > 0 or "replay/age" not in line
    trained = [line for line in lines if line["time/total_timesteps"] > 100]
    assert [line["time/training_ratio"] for line in trained] == pytest.approx([16.0] * len(trained), rel=0.2)
    ages = [line["replay/age"] for line in trained]
    assert ages[-1] > ages[0] > 0  # windows are drawn from all rows, and these become more
    new = np.mean([line["replay/share_new"] for line in trained])
    # A ratio of 16 is two windows of 8 rows per step, and seven steps are eight rows: a new window of 9 rows (with the row
    # before) per 9 rows.
    assert new == (pytest.approx(8 / 7 / 9 / 2, abs=0.02) if online_queue else 0.0)
