"""Run a function once, then replay its operations on the same memory: CUDA graphs behind an interface that any device has."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch as th

Result = TypeVar("Result")
WARM_UPS = 3


class Recorder(Protocol):
    """A way to run a function once and then its operations again and again, on the same memory."""

    def warm_up(self) -> AbstractContextManager[Any]:
        """:return: a context for runs before the recording, on the stream of the recording"""
        ...

    def record(self, function: Callable[[], Result]) -> Result:
        """:return: what the function returned; the memory is the same after each replay"""
        ...

    def replay(self) -> None:
        """Do it again: what the memory holds now is read, and the result overwritten."""

    def fork_rng(self) -> AbstractContextManager[Any]:
        """:return: a context that leaves the random state as it was"""
        ...

    def settle(self) -> None:
        """What follows waits for the warm-up, also where the recording failed."""


class CudaRecorder:
    """
    A CUDA graph. Random numbers are new at each replay: the graph moves the state of the device's generator along.

    :param device: of the update
    """

    def __init__(self, device: th.device):
        self.device = device
        self.stream = th.cuda.Stream(device)
        self.graph = th.cuda.CUDAGraph()

    def warm_up(self) -> AbstractContextManager[Any]:
        """On a side stream, the one that records: what libraries set up at first use belongs to a stream."""
        self.stream.wait_stream(th.cuda.current_stream(self.device))
        return th.cuda.stream(self.stream)

    def record(self, function: Callable[[], Result]) -> Result:
        """As :class:`Recorder` says."""
        th.cuda.current_stream(self.device).wait_stream(self.stream)
        th.cuda.synchronize(self.device)
        with th.cuda.graph(self.graph, stream=self.stream):
            result = function()
        return result

    def replay(self) -> None:
        """As :class:`Recorder` says."""
        self.graph.replay()

    def fork_rng(self) -> AbstractContextManager[Any]:
        """As :class:`Recorder` says."""
        return th.random.fork_rng([self.device])

    def settle(self) -> None:
        """As :class:`Recorder` says."""
        th.cuda.current_stream(self.device).wait_stream(self.stream)


class PythonRecorder:
    """The same on any device, without a gain: a replay calls the function and copies its result. For tests."""

    def warm_up(self) -> AbstractContextManager[Any]:
        """Nothing to set up."""
        return nullcontext()

    def record(self, function: Callable[[], Result]) -> Result:
        """As :class:`Recorder` says."""
        self.function, self.result = function, function()
        return self.result

    def replay(self) -> None:
        """As :class:`Recorder` says."""
        fresh = self.function()
        for mine, theirs in zip(tensors_of(self.result), tensors_of(fresh), strict=True):
            mine.copy_(theirs)

    def fork_rng(self) -> AbstractContextManager[Any]:
        """As :class:`Recorder` says."""
        return th.random.fork_rng([])

    def settle(self) -> None:
        """Nothing runs beside."""


def record_warm(recorder: Recorder, function: Callable[[], Result]) -> Result:
    """
    :param recorder: new
    :param function: runs a few times before it is recorded
    :return: what the recorded run returned; the random state is as before
    """
    with recorder.fork_rng():
        with recorder.warm_up():
            for _ in range(WARM_UPS):
                function()
        return recorder.record(function)


def tensors_of(value: Any) -> list[th.Tensor]:
    """:return: the tensors in a nest of tuples and dicts, in order; all else is passed over"""
    if isinstance(value, th.Tensor):
        return [value]
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def clone_tensors(value: Any) -> Any:
    """:return: the same nest with copies of its tensors"""
    if isinstance(value, th.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: clone_tensors(part) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [clone_tensors(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
