"""The training update of several ranks. Only imported if a launcher has started them."""

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

# The backward pass delivers most gradients at its end, so a few large buckets are fastest.
BUCKET_MB = 64
# The running range of returns is equal on all ranks, so buffers need no broadcast. Newer torch versions rename the argument.
IS_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if IS_RENAMED else "broadcast_buffers": False}


class ParallelUpdate(CompiledUpdate):
    """
    A :class:`CompiledUpdate` that averages gradients, range of returns and metrics over all ranks. Each rank has its own
    batch. Parameters start equal on all ranks and stay bit-equal. The update is not captured as a CUDA graph.

    :param loss_module: the objective; its parameters and buffers are copied from the main rank at the first batch
    :param ranks: the ranks that train together
    :param settings: other arguments of :class:`CompiledUpdate`
    """

    def __init__(self, loss_module: DreamerLoss, ranks: Ranks, **settings: Any):
        super().__init__(loss_module, **settings)
        self.ranks = ranks
        self.parallel: DistributedDataParallel | None = None

    def evaluate(self, batch: SequenceBatch, noise: UpdateNoise) -> LossOutput:
        """Same as :meth:`CompiledUpdate.evaluate`."""
        if self.parallel is None:
            # Not earlier: compiling evaluates the objective, too, and how often may differ between ranks if it fails.
            self.loss_module.gather = self.ranks.gather
            self.ranks.broadcast(self.policy.buffers())
            self.parallel = DistributedDataParallel(
                self.loss_module, **NO_BUFFERS, static_graph=True, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
            )
            # A wrapper that is still alive at exit aborts the process about one time in three (torch 2.13).
            atexit.register(drop_wrapper, weakref.ref(self))
        return self.parallel(batch, noise)

    def compute_gradients(self, loss: th.Tensor) -> None:
        """Average the gradients over the ranks. This needs ``backward``, because DDP does not see ``autograd.grad``."""
        self.policy.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def mean_over_ranks(self, metrics: th.Tensor) -> th.Tensor:
        """Average the metrics over the ranks."""
        return self.ranks.mean(metrics)


def drop_wrapper(update: "weakref.ref[ParallelUpdate]") -> None:
    """:param update: its DDP wrapper is deleted, if the update still exists"""
    alive = update()
    if alive is not None:
        alive.parallel = None
        gc.collect()
