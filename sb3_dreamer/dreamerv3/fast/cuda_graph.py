"""CUDA graphs behind a small interface: capture the operations of a function, then replay them on the same memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch as th

Result = TypeVar("Result")
WARM_UPS = 3


class Graph(Protocol):
    """A way to run a function once and then its operations again and again, on the same memory."""

    def warm_up(self) -> AbstractContextManager[Any]:
        """:return: a context for runs before the capture, on its stream"""
        ...

    def capture(self, function: Callable[[], Result]) -> Result:
        """:return: what the function returned; the memory is the same after each replay"""
        ...

    def replay(self) -> None:
        """Do it again: what the memory holds now is read, and the result overwritten."""

    def fork_rng(self) -> AbstractContextManager[Any]:
        """:return: a context that leaves the random state as it was"""
        ...

    def synchronize(self) -> None:
        """What follows waits for the warm-up, also where the capture failed."""


class CudaGraph:
    """
    A CUDA graph. Random numbers are new at each replay: the graph moves the state of the device's generator along.

    :param device: of the update
    """

    def __init__(self, device: th.device):
        self.device = device
        self.stream = th.cuda.Stream(device)
        self.graph = th.cuda.CUDAGraph()

    def warm_up(self) -> AbstractContextManager[Any]:
        """On a side stream, the one that captures: what libraries set up at first use belongs to a stream."""
        self.stream.wait_stream(th.cuda.current_stream(self.device))
        return th.cuda.stream(self.stream)

    def capture(self, function: Callable[[], Result]) -> Result:
        """As :class:`Graph` says."""
        th.cuda.current_stream(self.device).wait_stream(self.stream)
        th.cuda.synchronize(self.device)
        with th.cuda.graph(self.graph, stream=self.stream):
            result = function()
        return result

    def replay(self) -> None:
        """As :class:`Graph` says."""
        self.graph.replay()

    def fork_rng(self) -> AbstractContextManager[Any]:
        """As :class:`Graph` says."""
        return th.random.fork_rng([self.device])

    def synchronize(self) -> None:
        """As :class:`Graph` says."""
        th.cuda.current_stream(self.device).wait_stream(self.stream)


def capture_warm(graph: Graph, function: Callable[[], Result]) -> Result:
    """
    :param graph: new
    :param function: runs a few times before it is captured
    :return: what the captured run returned; the random state is as before
    """
    with graph.fork_rng():
        with graph.warm_up():
            for _ in range(WARM_UPS):
                function()
        return graph.capture(function)
