"""The training update of several ranks with torch's DDP. Only imported if it is used."""

import atexit
import gc
import inspect
import weakref
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.type_aliases import SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.fast.compiled import CompiledUpdate
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.update import Differentiated, UpdateResult

# The backward pass delivers most gradients at its end, so a few large buckets are fastest.
BUCKET_MB = 64
# The running range of returns is equal on all ranks, so buffers need no broadcast. Newer torch versions rename the argument.
IS_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if IS_RENAMED else "broadcast_buffers": False}


class ParallelUpdate(CompiledUpdate):
    """
    An update whose gradients are averaged by torch's ``DistributedDataParallel``, which evaluates the whole objective. It
    works with any optimizer, and it is not captured as a CUDA graph.

    :param loss_module: the objective; its parameters and buffers are copied from the main rank at the first batch
    :param ranks: the ranks that train together
    :param settings: other arguments of :class:`CompiledUpdate`
    """

    summary = "gradients through torch's DDP, the update is not captured"

    def __init__(self, loss_module: DreamerLoss, ranks: Ranks, **settings: Any):
        super().__init__(loss_module, **settings)
        self.ranks = ranks
        self.parallel: DistributedDataParallel | None = None

    def run(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """Same as :meth:`TrainingUpdate.run`."""
        noise = self.loss_module.draw_noise(*batch.rewards.shape) if noise is None else noise
        self.compile_once(batch)
        parallel = self.parallel = self.parallel or self.wrap()
        kept = [buffer.clone() for buffer in self.policy.buffers()]
        with self.policy.autocast():
            output = parallel(batch, noise)
        self.policy.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()  # DDP does not see `autograd.grad`
        differentiated = Differentiated.of(output)
        return self.finish(kept, differentiated._replace(values=self.ranks.mean(differentiated.values)))

    def wrap(self) -> DistributedDataParallel:
        """:return: the DDP wrapper. Compiling evaluates the objective, too, so this comes later."""
        gather = self.ranks.gather  # not `self`: in a cycle, the wrapper would outlive this update
        self.loss_module.gather = lambda statistics: gather(statistics.unsqueeze(0))
        self.ranks.broadcast(self.policy.buffers())
        # A wrapper that is still alive at exit aborts the process about one time in three (torch 2.13).
        atexit.register(drop_wrapper, weakref.ref(self))
        return DistributedDataParallel(
            self.loss_module, **NO_BUFFERS, static_graph=True, gradient_as_bucket_view=True, bucket_cap_mb=BUCKET_MB
        )


def drop_wrapper(update: "weakref.ref[ParallelUpdate]") -> None:
    """:param update: its DDP wrapper is deleted, if the update still exists"""
    alive = update()
    if alive is not None:
        alive.parallel = None
        gc.collect()
