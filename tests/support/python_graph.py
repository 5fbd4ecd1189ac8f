"""Stand-in for :class:`~sb3_dreamer.dreamerv3.fast.cuda_graph.CudaGraph` on any device, without a speed-up."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch as th

from sb3_dreamer.common.functional import tensors_of

Result = TypeVar("Result")


class PythonGraph:
    """A replay calls the function and copies the result."""

    def warm_up(self) -> AbstractContextManager[Any]:
        """Nothing to set up."""
        return nullcontext()

    def capture(self, function: Callable[[], Result]) -> Result:
        """As :class:`Graph` says."""
        self.function, self.result = function, function()
        return self.result

    def replay(self) -> None:
        """As :class:`Graph` says."""
        fresh = self.function()
        for mine, theirs in zip(tensors_of(self.result), tensors_of(fresh), strict=True):
            mine.copy_(theirs)

    def fork_rng(self) -> AbstractContextManager[Any]:
        """As :class:`Graph` says."""
        return th.random.fork_rng([])

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def successor(self) -> "PythonGraph":
        """As :class:`Graph` says."""
        return type(self)()
