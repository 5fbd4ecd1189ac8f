"""Delayed write-back of latents: order, lag, overwritten rows, flush."""

import pickle

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.replay.write_back import LatentWriteBack
from sb3_dreamer.common.type_aliases import LatentState, SequenceIndices
from tests.support.helpers import counter_model


class Arrival:
    """An event that the test completes."""

    def __init__(self):
        self.has_happened = False

    def query(self):
        return self.has_happened

    def synchronize(self):
        self.has_happened = True


class SlowTransfer:
    """Stand-in for device copies: they are complete only after their event."""

    def __init__(self):
        self.events = []

    def __call__(self, tensors):
        event = Arrival()
        self.events.append(event)
        return [tensor.numpy() for tensor in tensors], event


@pytest.fixture
def buffer():
    model = counter_model(training_ratio=0.01)  # no update is due
    model.learn(60)
    return model.replay_buffer


def latents(buffer, value):
    """Latents of one row of each of two environments."""
    deter, groups, classes = buffer.latent_shape
    one_hot = th.nn.functional.one_hot(th.full((2, 1, groups), int(value)), classes)
    return LatentState(th.full((2, 1, deter), float(value)), one_hot.float())


def at(buffer, steps):
    rows = np.asarray(steps) % buffer.buffer_size
    return buffer.deter[rows, [0, 1], 0].tolist(), buffer.stoch[rows, [0, 1], 0].tolist()


def rows(steps):
    return SequenceIndices(np.asarray(steps)[:, None], np.array([0, 1]))


def test_nothing_is_written_before_it_has_arrived(buffer):
    transfer = SlowTransfer()
    write_back = LatentWriteBack(buffer, transfer)
    before = at(buffer, [5, 6])
    write_back.enqueue(rows([5, 6]), latents(buffer, 2))
    write_back.write_ready()
    assert at(buffer, [5, 6]) == before
    transfer.events[0].has_happened = True
    write_back.write_ready()
    assert at(buffer, [5, 6]) == ([2.0, 2.0], [2, 2])
    assert buffer.has_latent[[5, 6], [0, 1]].all()


def test_latents_of_a_skipped_update_are_not_written(buffer):
    write_back = LatentWriteBack(buffer, SlowTransfer())
    before = at(buffer, [5, 6])
    is_finite = th.tensor(False)
    write_back.enqueue(rows([5, 6]), latents(buffer, 2), is_finite)
    is_finite.fill_(True)  # the memory that a captured update writes to
    write_back.flush()
    assert at(buffer, [5, 6]) == before
    write_back.enqueue(rows([5, 6]), latents(buffer, 2), is_finite)
    write_back.flush()
    assert at(buffer, [5, 6]) == ([2.0, 2.0], [2, 2])


def test_the_lag_is_one_update_at_most(buffer):
    write_back = LatentWriteBack(buffer, SlowTransfer())
    write_back.enqueue(rows([5, 6]), latents(buffer, 1))
    write_back.write_ready()
    write_back.enqueue(rows([7, 8]), latents(buffer, 2))
    write_back.write_ready()  # waits for the first, not for the second
    assert at(buffer, [5, 6])[0] == [1.0, 1.0]
    assert [event.has_happened for event in write_back.transfer.events] == [True, False]
    write_back.flush()
    assert at(buffer, [7, 8])[0] == [2.0, 2.0]


def test_the_later_of_two_updates_wins(buffer):
    write_back = LatentWriteBack(buffer, SlowTransfer())
    for value in (1, 3):
        write_back.enqueue(rows([5, 6]), latents(buffer, value))
    write_back.flush()
    assert at(buffer, [5, 6]) == ([3.0, 3.0], [3, 3])


def test_overwritten_rows_are_skipped(buffer):
    write_back = LatentWriteBack(buffer, SlowTransfer())
    write_back.enqueue(rows([5, 6]), latents(buffer, 1))
    before = at(buffer, [5, 6])
    buffer.counts[0] += buffer.buffer_size  # row 5 of environment 0 has been overwritten
    write_back.flush()
    after = at(buffer, [5, 6])
    assert after[0] == [before[0][0], 1.0] and after[1] == [before[1][0], 1]


def test_on_a_cpu_latents_are_written_immediately(buffer):
    buffer.refresh_latents(rows([5, 6]), latents(buffer, 2))
    assert at(buffer, [5, 6]) == ([2.0, 2.0], [2, 2])


@pytest.fixture
def late(buffer):
    """A buffer with pending latents of value 2 for rows 5 and 6."""
    buffer._write_back.transfer = SlowTransfer()
    buffer._write_back.enqueue(rows([5, 6]), latents(buffer, 2))
    return buffer


def test_sampling_writes_arrived_latents(late):
    late.sample(2)
    assert at(late, [5, 6])[0] != [2.0, 2.0]
    late._write_back.transfer.events[0].has_happened = True
    late.sample(2)
    assert at(late, [5, 6]) == ([2.0, 2.0], [2, 2])


def test_a_pickle_includes_pending_latents(late):
    copy = pickle.loads(pickle.dumps(late))
    assert at(copy, [5, 6]) == ([2.0, 2.0], [2, 2])
    assert not late._write_back.pending and copy._write_back.buffer is copy


@pytest.mark.parametrize(("old", "new"), [(40, 80), (40, 30), (None, 400)], ids=["wrapped, larger", "smaller", "larger"])
def test_resize_moves_everything(buffer, old, new):
    """Buffers with 60 steps, some of which have overwritten their oldest rows."""
    if old is not None:
        buffer.resize(old)
        for _ in range(30):  # further rows of both environments, beyond the end of the arrays
            step = np.zeros((buffer.n_envs, 3), np.float32)
            buffer.add(
                step, step, np.zeros(buffer.n_envs), np.zeros(buffer.n_envs), np.zeros(buffer.n_envs), [{}] * buffer.n_envs
            )
    newest = (buffer.counts - 1)[:2]
    buffer._write_back.transfer = SlowTransfer()
    buffer._write_back.enqueue(rows(newest), latents(buffer, 2))
    gone = buffer.counts.copy()
    buffer.resize(new)
    assert at(buffer, newest - (gone - buffer.counts)[:2]) == ([2.0, 2.0], [2, 2])


def test_reset_drops_pending_latents(late):
    late.reset()
    late._write_back.flush()
    assert not late.has_latent.any()
