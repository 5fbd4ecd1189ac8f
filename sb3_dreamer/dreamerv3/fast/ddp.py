"""The training update of several ranks. Imported only where a launcher started them."""

import atexit
import gc
import inspect
import weakref
from typing import Any

import torch as th
from torch.nn.parallel import DistributedDataParallel

from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.type_aliases import SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.fast.compiled import CompiledUpdate
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossOutput

# The backward pass hands over most gradients at its end, so few large messages cost least.
BUCKET_MB = 64
# The running range of returns is the same on all ranks anyway and need not travel at every update. Torch renames the argument.
IS_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if IS_RENAMED else "broadcast_buffers": False}


class ParallelUpdate(CompiledUpdate):
    """
    As :class:`CompiledUpdate`, with the gradients, the range of returns and the metrics of all ranks, each of which has a
    batch of its own. Parameters, equal on all ranks at the start, stay so to the bit. The update as a whole is not captured.

    :param loss_module: the objective; at the first batch its parameters and buffers become those of the main rank
    :param ranks: train together
    :param settings: as those of :class:`CompiledUpdate`
    """

    def __init__(self, loss_module: DreamerLoss, ranks: Ranks, **settings: Any):
        super().__init__(loss_module, **settings)
        self.ranks = ranks
        self.parallel: DistributedDataParallel | None = None

    def evaluate(self, batch: SequenceBatch, noise: UpdateNoise) -> LossOutput:
        """As :meth:`CompiledUpdate.evaluate`."""
        if self.parallel is None:
            # Not before: compiling evaluates the objective too, and not on all ranks as often if it fails.
            self.loss_module.gather = self.ranks.gather
            self.ranks.broadcast(self.policy.buffers())
            self.parallel = DistributedDataParallel(
                self.loss_module, **NO_BUFFERS, static_graph=True, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
            )
            # A wrapper that is alive when the interpreter ends aborts the process in one exit of three (torch 2.13).
            atexit.register(drop_wrapper, weakref.ref(self))
        return self.parallel(batch, noise)

    def compute_gradients(self, loss: th.Tensor) -> None:
        """As :meth:`CompiledUpdate.compute_gradients`, averaged over the ranks: only ``backward`` lets DDP see them."""
        self.policy.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def mean_over_ranks(self, metrics: th.Tensor) -> th.Tensor:
        """As :meth:`CompiledUpdate.mean_over_ranks`."""
        return self.ranks.mean(metrics)


def drop_wrapper(update: "weakref.ref[ParallelUpdate]") -> None:
    """:param update: loses its wrapper, if it is still there"""
    alive = update()
    if alive is not None:
        alive.parallel = None
        gc.collect()
