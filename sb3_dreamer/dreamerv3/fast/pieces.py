"""The training update of several ranks: three parts with two collectives between them. Only imported by launched ranks."""

import atexit
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch as th

from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.type_aliases import SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.fast.captured import CapturedUpdate, GraphCapture
from sb3_dreamer.dreamerv3.fast.compiled import CompiledUpdate
from sb3_dreamer.dreamerv3.fast.cuda_graph import Graph
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.update import Differentiated, Started, UpdateResult


class FlatGradients:
    """
    One buffer for all gradients and metrics, so that they are reduced at once.

    :param parameters: those with a gradient, all of one dtype
    :param n_metrics: number of metrics
    """

    def __init__(self, parameters: Sequence[th.Tensor], n_metrics: int):
        sizes = [parameter.numel() for parameter in parameters]
        self.key = [id(parameter) for parameter in parameters], n_metrics
        self.buffer = parameters[0].new_zeros(sum(sizes) + n_metrics)  # (all gradients, then metrics)
        self.gradients, self.metrics = self.buffer.split([sum(sizes), n_metrics])
        # With the strides of the parameters, as the optimizer's foreach operations need them.
        self.views = [
            part.as_strided(parameter.shape, parameter.stride())
            for part, parameter in zip(self.gradients.split(sizes), parameters, strict=True)
        ]


class PiecewiseUpdate(CompiledUpdate):
    """
    A :class:`CompiledUpdate` of several ranks with two collectives: one gathers returns and sizes of losses, and one averages
    all gradients and metrics in one flat buffer. Each rank has its own batch. Parameters start equal on all ranks and stay
    bit-equal.

    :param loss_module: the objective; its buffers are copied from the main rank before the first update
    :param ranks: the ranks that train together
    :param reduce_dtype: ``"fp32"``: gradients are sent as they are; ``"bf16"``: in 16 bits
    :param settings: other arguments of :class:`CompiledUpdate`
    """

    summary = "gradients in one all-reduce"

    def __init__(self, loss_module: DreamerLoss, ranks: Ranks, reduce_dtype: str = "fp32", **settings: Any):
        super().__init__(loss_module, **settings)
        self.ranks, self.n_ranks = ranks, ranks.size
        self.reduce_dtype = reduce_dtype
        self.is_connected = False
        self.gathered: th.Tensor | None = None
        self.flat: FlatGradients | None = None

    def connect(self) -> None:
        """Before the first update: buffers, such as the range of returns, start equal on all ranks."""
        if not self.is_connected:
            self.is_connected = True
            self.ranks.broadcast(self.policy.buffers())

    def run(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """Same as :meth:`TrainingUpdate.run`."""
        self.compile_once(batch)
        self.connect()
        return super().run(batch, noise)

    def start(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> Started:
        """Same as :meth:`TrainingUpdate.start`; also make room for the statistics of all ranks."""
        started = super().start(batch, noise)
        statistics = started.preview.statistics
        if self.gathered is None or self.gathered.shape[1:] != statistics.shape:
            self.gathered = statistics.new_zeros(self.n_ranks, *statistics.shape)
        return started

    def gather(self, statistics: th.Tensor) -> th.Tensor:
        """Same as :meth:`TrainingUpdate.gather`."""
        assert self.gathered is not None
        return self.ranks.gather(statistics.unsqueeze(0), out=self.gathered)

    def differentiate(self, started: Started, statistics: th.Tensor) -> Differentiated:
        """Same as :meth:`TrainingUpdate.differentiate`, with gradients and metrics in the flat buffer."""
        result = super().differentiate(started, statistics)
        with_grad = [parameter for parameter in self.policy.parameters() if parameter.grad is not None]
        if self.flat is None or self.flat.key != ([id(parameter) for parameter in with_grad], len(result.values)):
            self.flat = FlatGradients(with_grad, len(result.values))
        with th.no_grad():
            th._foreach_copy_(self.flat.views, [parameter.grad for parameter in with_grad if parameter.grad is not None])
            self.flat.metrics.copy_(result.values)
        for parameter, view in zip(with_grad, self.flat.views, strict=True):
            parameter.grad = view
        return result._replace(values=self.flat.metrics)

    def reduce(self, differentiated: Differentiated) -> None:
        """Average the flat buffer over all ranks."""
        assert self.flat is not None and differentiated.values is self.flat.metrics
        if self.reduce_dtype == "bf16":
            sent = self.flat.gradients.to(th.bfloat16)
            self.ranks.mean_(sent)
            self.flat.gradients.copy_(sent)
            self.ranks.mean_(self.flat.metrics)
        else:
            self.ranks.mean_(self.flat.buffer)


class CapturedPieces(CapturedUpdate):
    """
    The pieces of a :class:`PiecewiseUpdate`, each captured; the collectives between them are not. Ranks capture again together
    and fall back together. They agree on this at the first update after each rollout.

    :param update: the update to capture; its optimizer must be :class:`LaProp`
    :param make_graph: makes a new graph
    :param verbose: 1 prints how long capturing took
    """

    update: PiecewiseUpdate
    summary = f"{PiecewiseUpdate.summary} between captured pieces of the update"

    def __init__(self, update: PiecewiseUpdate, make_graph: Callable[[], Graph], verbose: int = 0):
        super().__init__(update, make_graph, verbose)
        self.agreed_at = -1  # number of rollouts
        functions: list[Callable[..., Any]] = [self._start, self._differentiate, self._finish]
        between = [self._gather, self._reduce]
        self.capture = GraphCapture(
            "the training update", functions, make_graph, self.state, keeps_state=True, between=between
        )
        # CUDA graphs must be deleted before the process group, which is left at exit, too.
        atexit.register(drop_graphs, weakref.ref(self.capture))

    def prepare(self, batch: SequenceBatch) -> bool:
        """See :meth:`CapturedUpdate.prepare`. Ranks may differ, because both kinds of updates exchange the same numbers."""
        ranks = self.update.ranks
        if self.agreed_at != ranks.n_rollouts:
            self.agreed_at = ranks.n_rollouts
            self.update.connect()
            self.capture.prepare((batch,), self.optimizer.make_capturable, ranks.any)
        return self.capture.is_possible and self.capture.is_current((batch,))

    # The pieces pass on their results as attributes, because each is captured separately.

    def _start(self, batch: SequenceBatch) -> None:
        self.started = self.update.start(batch)

    def _gather(self) -> None:
        self.update.gather(self.started.preview.statistics)

    def _differentiate(self) -> None:
        assert self.update.gathered is not None
        self.differentiated = self.update.differentiate(self.started, self.update.gathered)

    def _reduce(self) -> None:
        self.update.reduce(self.differentiated)

    def _finish(self) -> UpdateResult:
        return self.update.finish(self.started.kept, self.differentiated)


def drop_graphs(capture: "weakref.ref[GraphCapture]") -> None:
    """:param capture: its graphs are deleted, if it still exists"""
    alive = capture()
    if alive is not None:
        alive.drop()
