"""Copy latents from the device back to their replay rows without waiting for the device."""

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch as th

from sb3_dreamer.common.type_aliases import LatentState, SequenceIndices


class Event(Protocol):
    """What ``th.cuda.Event`` offers."""

    def query(self) -> bool:
        """:return: whether it has happened"""
        ...

    def synchronize(self) -> None:
        """Wait until it has happened."""


class LatentStore(Protocol):
    """What :class:`~sb3_dreamer.common.buffers.SequenceReplayBuffer` offers for latents."""

    def write_latents(self, indices: SequenceIndices, deter: np.ndarray, stoch: np.ndarray) -> None:
        """Write latents next to their rows."""


# Starts to copy tensors to the host; the copies are whole once the event has happened.
Transfer = Callable[[list[th.Tensor]], tuple[list[np.ndarray], Event]]


@lru_cache
def way_back(device: th.device) -> "th.cuda.Stream":
    """:return: the stream on which latents travel; not that of the batches, which need not wait for them"""
    return th.cuda.Stream(device)


def pinned_transfer(tensors: list[th.Tensor]) -> tuple[list[np.ndarray], Event]:
    """
    Copy to pinned memory on a side stream, while the device goes on.

    :param tensors: on one CUDA device, not to be changed in place
    :return: copies, and the event after which they are whole
    """
    device = tensors[0].device
    stream = way_back(device)  # made here, where there is something on the device: not where a model or buffer is loaded
    stream.wait_stream(th.cuda.current_stream(device))
    with th.cuda.stream(stream):
        copies = [th.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)
        event = th.cuda.Event()
        event.record(stream)
    return [copy.numpy() for copy in copies], event


class Pending(NamedTuple):
    """Latents on their way to the host."""

    indices: SequenceIndices
    copies: list[np.ndarray]
    event: Event


class LatentWriteBack:
    """
    After an update, its posterior replaces the latents stored with the replayed rows.

    The copy travels while the device goes on. It is written before the next batch is gathered, if it has arrived by then; it
    lags by one update at most, and :meth:`flush` ends the lag. Rows carry running numbers, so rows that were overwritten
    meanwhile are skipped.

    :param buffer: gets the latents
    :param transfer: brings tensors to the host
    """

    MAX_LAG = 1

    def __init__(self, buffer: LatentStore, transfer: Transfer = pinned_transfer):
        self.buffer = buffer
        self.transfer = transfer
        self.pending: deque[Pending] = deque()

    def enqueue(self, indices: SequenceIndices, posterior: LatentState) -> None:
        """
        :param indices: rows of an update
        :param posterior: their latents (B, T, ...)
        """
        # New tensors: the next update may overwrite its outputs in place.
        deter = posterior.deter.detach().to(th.float16)  # (B, T, D)
        stoch = posterior.stoch.detach().argmax(-1).to(th.int16)  # (B, T, S)
        self.pending.append(Pending(indices, *self.transfer([deter, stoch])))

    def write_ready(self) -> None:
        """Before a batch is gathered: write what has arrived, and wait for what is older than the last update."""
        while self.pending and (len(self.pending) > self.MAX_LAG or self.pending[0].event.query()):
            self._write()

    def flush(self) -> None:
        """Write everything: before rows are saved or loaded, and when a run ends."""
        while self.pending:
            self._write()

    def _write(self) -> None:
        indices, copies, event = self.pending.popleft()
        event.synchronize()
        self.buffer.write_latents(indices, *copies)
