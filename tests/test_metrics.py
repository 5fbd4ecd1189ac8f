"""Averages of metrics over updates, and the duration of updates."""

import tempfile

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.metrics import MetricAverager, UnstableTrainingError
from sb3_dreamer.common.type_aliases import LatentState
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY, counter_model


def test_metric_averager_waits_for_the_flush():
    averager = MetricAverager()
    assert averager.means() == {}
    values = th.tensor([1.0, 4.0])
    averager.add(("a", "b"), values)
    values[:] = th.tensor([2.0, 0.0])  # the memory that a captured update writes to
    averager.add(("a", "b"), values)
    assert averager.means() == {"a": 1.5, "b": 2.0}
    averager.flush()
    assert averager.means() == {}


def test_a_record_is_the_mean_and_leaves_the_sums():
    averager, logger = MetricAverager(), Logger(None, [])
    assert averager.record(logger) == {} and not logger.name_to_value
    for value in (1.0, 2.0, 6.0):
        averager.add(("loss",), th.tensor([value]))
    assert averager.record(logger) == averager.record(logger) == {"loss": 3.0}
    assert logger.name_to_value == {"loss": 3.0, "train/skipped_updates": 0} and averager.count == 3


class Copies(TorchDispatchMode):
    """Counts copies of tensors to the host."""

    n_copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_copies += "_local_scalar_dense" in str(func) or ("_to_copy" in str(func) and "cpu" in str(kwargs))
        return func(*args, **(kwargs or {}))


def test_a_log_line_copies_to_the_host_once(monkeypatch):
    n_lists = 0
    tolist = th.Tensor.tolist

    def count(tensor):
        nonlocal n_lists
        n_lists += 1
        return tolist(tensor)

    model = counter_model(training_ratio=8)
    model.learn(60, log_interval=None)
    monkeypatch.setattr(th.Tensor, "tolist", count)
    assert model._metrics.count > 0
    with Copies() as copies:
        model.dump_logs()
    assert (n_lists, copies.n_copies) == (1, 0)


def test_metrics_of_long_keys_are_shown_whole(tmp_path, capsys):
    """Two names that SB3 would cut to the same 36 characters."""
    keys = ["robot0_joint_positions", "robot0_joint_velocities"]
    env = NoiseEnv(spaces.Dict({key: spaces.Box(-1.0, 1.0, (2,)) for key in keys}), spaces.Discrete(2))
    model = DreamerV3("MultiInputPolicy", env, **TINY, verbose=1, tensorboard_log=str(tmp_path))
    model.learn(60, log_interval=1)
    output = capsys.readouterr().out
    assert all(f"reconstruction_loss/{key} " in output for key in keys)
    assert "actor_critic/ " in output and "..." not in output


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_skipped_updates_are_counted_and_left_out(bad):
    averager, logger = MetricAverager(), Logger(None, [])
    for value in (bad, 1.0, bad, bad, 3.0):
        averager.add(("loss", "norm"), th.tensor([value, 7.0]))
    assert averager.record(logger) == {"loss": 2.0, "norm": 7.0}
    assert logger.name_to_value == {"loss": 2.0, "norm": 7.0, "train/skipped_updates": 3}
    averager.flush()
    averager.add(("loss", "norm"), th.tensor([bad, 7.0]))
    logger.name_to_value.clear()
    assert averager.record(logger) == {} and logger.name_to_value == {"train/skipped_updates": 1}  # since the last line


def test_ten_skipped_updates_in_a_row_are_an_error(tmp_path):
    """They are counted across log lines. The error names what is not finite and the file of the batch."""
    averager, logger = MetricAverager(), Logger(str(tmp_path), [])
    batch = {"camera": th.arange(6).reshape(2, 3), "state": LatentState(th.ones(2), th.zeros(1, dtype=th.bfloat16))}
    for i in range(9):
        averager.add(("good", "bad", "worse"), th.tensor([1.0, float("nan"), float("inf")]), batch=i)
    averager.record(logger)
    averager.flush()
    averager.add(("good", "bad", "worse"), th.tensor([1.0, float("nan"), float("-inf")]), batch=batch)
    with pytest.raises(UnstableTrainingError, match="`bad` became nan: lower `learning_rate`") as error:
        averager.record(logger)
    assert issubclass(UnstableTrainingError, ValueError)  # which RL Zoo prunes
    assert "The last 10 updates were skipped" in str(error.value) and str(error.value).endswith("too: `worse`")
    (path,) = tmp_path.iterdir()
    assert str(path) in str(error.value)
    with np.load(path, allow_pickle=False) as arrays:
        assert {name: arrays[name].tolist() for name in arrays} == {
            "camera": [[0, 1, 2], [3, 4, 5]],
            "state/deter": [1.0, 1.0],
            "state/stoch": [0.0],
        }
    averager.add(("good", "bad", "worse"), th.tensor([1.0, 4.0, 2.0]))  # continues
    assert averager.record(logger) == {"good": 1.0, "bad": 4.0, "worse": 2.0}


def test_a_batch_that_cannot_be_saved_does_not_hide_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    averager = MetricAverager()
    for _ in range(12):
        averager.add(("loss",), th.tensor([float("nan")]), batch={"a": th.ones(1)})
    with pytest.raises(UnstableTrainingError, match=r"not saved: .*The last 12 updates"):
        averager.record(Logger(str(tmp_path / "missing too"), []))
