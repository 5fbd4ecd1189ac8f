"""Small interface to CUDA graphs: capture the operations of a function, then replay them on the same memory."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch as th

Result = TypeVar("Result")
WARM_UPS = 3


class Graph(Protocol):
    """Captures the operations of a function once and replays them any number of times on the same memory."""

    def warm_up(self) -> AbstractContextManager[Any]:
        """:return: a context for warm-up runs before the capture, on the same stream"""
        ...

    def capture(self, function: Callable[[], Result]) -> Result:
        """:return: what the function returned; each replay writes its result to the same memory"""
        ...

    def replay(self) -> None:
        """Run the captured operations again: they read the current content of the inputs and overwrite the result."""

    def fork_rng(self) -> AbstractContextManager[Any]:
        """:return: a context that restores the random state at its end"""
        ...

    def synchronize(self) -> None:
        """Make all later operations wait for the warm-up, also after a failed capture."""

    def successor(self) -> "Graph":
        """:return: a new graph that shares memory with this one, and is always replayed after it"""
        ...


class CudaGraph:
    """
    A CUDA graph. Each replay draws new random numbers, because the graph advances the state of the device's generator.

    :param device: CUDA device of the captured function
    :param predecessor: graph whose stream and memory pool are used
    """

    def __init__(self, device: th.device, predecessor: "CudaGraph | None" = None):
        self.device = device
        self.stream: th.cuda.Stream = th.cuda.Stream(device) if predecessor is None else predecessor.stream
        self.pool = None if predecessor is None else predecessor.graph.pool()
        self.graph: th.cuda.CUDAGraph = th.cuda.CUDAGraph()

    def warm_up(self) -> AbstractContextManager[Any]:
        """Warm up on the stream that will capture, because libraries allocate their workspaces per stream at first use."""
        self.stream.wait_stream(th.cuda.current_stream(self.device))
        return th.cuda.stream(self.stream)

    def capture(self, function: Callable[[], Result]) -> Result:
        """See :class:`Graph`."""
        th.cuda.current_stream(self.device).wait_stream(self.stream)
        th.cuda.synchronize(self.device)
        # Other threads, such as NCCL's, may use CUDA in the meantime.
        with th.cuda.graph(self.graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = function()
        return result

    def replay(self) -> None:
        """See :class:`Graph`."""
        self.graph.replay()

    def fork_rng(self) -> AbstractContextManager[Any]:
        """See :class:`Graph`."""
        return th.random.fork_rng([self.device])

    def synchronize(self) -> None:
        """See :class:`Graph`."""
        th.cuda.current_stream(self.device).wait_stream(self.stream)

    def successor(self) -> "CudaGraph":
        """See :class:`Graph`."""
        return CudaGraph(self.device, self)


def capture_warm(graph: Graph, functions: Sequence[Callable[[], Any]]) -> tuple[list[Graph], Any]:
    """
    Run functions one after another a few times, then capture each of them. The random state is unchanged afterwards.

    :param graph: a new graph
    :param functions: the functions to capture
    :return: a graph for each function, and what the captured run of the last one returned
    """
    graphs, result = [graph], None
    with graph.fork_rng():
        with graph.warm_up():
            for _ in range(WARM_UPS):
                for function in functions:
                    function()
        for function in functions[:-1]:
            graphs[-1].capture(function)
            graphs.append(graphs[-1].successor())
        result = graphs[-1].capture(functions[-1])
    return graphs, result
