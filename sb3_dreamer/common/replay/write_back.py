"""Copy latents from the device back to their replay rows without waiting for the device."""

from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch as th

from sb3_dreamer.common.type_aliases import LatentState, SequenceIndices


class Event(Protocol):
    """The part of ``th.cuda.Event`` that is used here."""

    def query(self) -> bool:
        """:return: whether the event has completed"""
        ...

    def synchronize(self) -> None:
        """Wait until the event has completed."""


class LatentStore(Protocol):
    """The part of :class:`~sb3_dreamer.common.buffers.SequenceReplayBuffer` that is used here."""

    def write_latents(self, indices: SequenceIndices, deter: np.ndarray, stoch: np.ndarray) -> None:
        """Write latents to their rows."""


# Starts copying tensors to the host. The copies are complete once the event has completed.
Transfer = Callable[[list[th.Tensor]], tuple[list[np.ndarray], Event]]


@lru_cache
def write_back_stream(device: th.device) -> "th.cuda.Stream":
    """:return: the stream on which latents are copied; separate, so that copies of batches do not wait for them"""
    return th.cuda.Stream(device)


def pinned_transfer(tensors: list[th.Tensor]) -> tuple[list[np.ndarray], Event]:
    """
    Copy to pinned memory on a side stream, while the device continues to compute.

    :param tensors: tensors on one CUDA device, which must not be changed in place
    :return: copies, and the event after which they are complete
    """
    device = tensors[0].device
    stream = write_back_stream(device)  # created at the first copy, so that loading a model or buffer needs no stream
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
    """Latents that are being copied to the host: deter, stoch, and whether they are valid."""

    indices: SequenceIndices
    copies: list[np.ndarray]
    event: Event


class LatentWriteBack:
    """
    Replaces the latents of replayed rows by the posterior of the update.

    Latents are copied to the host while the device continues to compute. They are written before the next batch is gathered
    if the copy is complete by then, and before the batch after that in any case. :meth:`flush` writes all of them. Rows that
    have been overwritten since are recognised by their step numbers and skipped.

    :param buffer: buffer to write to
    :param transfer: copies tensors to the host
    """

    MAX_LAG = 1

    def __init__(self, buffer: LatentStore, transfer: Transfer = pinned_transfer):
        self.buffer = buffer
        self.transfer = transfer
        self.pending: deque[Pending] = deque()

    def enqueue(self, indices: SequenceIndices, posterior: LatentState, is_valid: th.Tensor | None = None) -> None:
        """
        Start copying the latents of an update.

        :param indices: rows of the update
        :param posterior: their latents (B, T, ...)
        :param is_valid: whether to write them, a bool on the device, which is read with the copies; None: write them
        """
        self.write_ready()
        # New tensors: the next update may overwrite its outputs in place.
        deter = posterior.deter.detach().to(th.float16)  # (B, T, D)
        stoch = posterior.stoch.detach().argmax(-1).to(th.int16)  # (B, T, S)
        is_valid = deter.new_ones((), dtype=th.bool) if is_valid is None else is_valid.clone()
        self.pending.append(Pending(indices, *self.transfer([deter, stoch, is_valid])))

    def write_ready(self) -> None:
        """Write all complete copies, and wait for those older than the last update. Call it before a batch is gathered."""
        while self.pending and (len(self.pending) > self.MAX_LAG or self.pending[0].event.query()):
            self._write()

    def flush(self) -> None:
        """Write everything. Call it before rows are saved or loaded, and at the end of a run."""
        while self.pending:
            self._write()

    def _write(self) -> None:
        indices, copies, event = self.pending.popleft()
        event.synchronize()
        deter, stoch, is_valid = copies
        if is_valid:
            self.buffer.write_latents(indices, deter, stoch)
