"""One training update as a function of a batch: loss, gradient, clipping, optimizer step, critic target."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.optimizers import LaProp, clip_grad_agc_
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossOutput, Preview


class UpdateResult(NamedTuple):
    """
    Result of an update: posterior (B, T, ...), metrics in the order of ``metric_names`` (M,), and whether all of these are
    finite, a bool on the device. If they are not, the update was skipped.
    """

    posterior: LatentState
    metrics: th.Tensor
    is_finite: th.Tensor


class Started(NamedTuple):
    """First piece of an update: the batch, the first part of the objective, and the buffers as they were before the update."""

    batch: SequenceBatch
    preview: Preview
    kept: list[th.Tensor]


class Differentiated(NamedTuple):
    """
    Second piece of an update: posterior (B, T, ...), names and values (M,) of the metrics of the objective. The gradients are
    in ``grad`` of the parameters.
    """

    posterior: LatentState
    names: tuple[str, ...]
    values: th.Tensor

    @classmethod
    def of(cls, output: LossOutput) -> "Differentiated":
        """:return: posterior and metrics of an evaluation whose gradients have been computed"""
        posterior = LatentState(*(part.detach() for part in output.states))
        return cls(posterior, tuple(output.metrics), as_vector(output.metrics))


def as_vector(metrics: dict[str, th.Tensor]) -> th.Tensor:
    """:return: values of scalar metrics, detached (M,)"""
    return th.stack([value.detach().float() for value in metrics.values()])


def part_of(name: str) -> str:
    """:return: part of the policy to which a parameter belongs; ``th.compile(policy)`` puts a prefix before the names"""
    return name.removeprefix("_orig_mod.").split(".")[0]


def by_part(
    name: str, values: th.Tensor, counts: dict[str, int], reduce: Callable[[th.Tensor], th.Tensor]
) -> dict[str, th.Tensor]:
    """
    :param name: name of a metric
    :param values: one value for each parameter with a gradient, part by part (P,)
    :param counts: number of these parameters in each part
    :param reduce: norm or mean
    :return: the metric of each part, scalars
    """
    return {f"{name}/{part}": reduce(own) for part, own in zip(counts, values.split(list(counts.values())), strict=True)}


class TrainingUpdate:
    """
    Loss, gradient, clipping, optimizer step and critic target. Nothing is copied to the host, and the shapes of the batch
    determine all other shapes.

    An update consists of three pieces. With several ranks, numbers are exchanged between them:

    .. code-block:: text

        start            world model, imagined trajectories, returns
        gather           returns and sizes of the losses of all ranks, for running percentiles and means
        differentiate    losses of actor and critic, gradients
        reduce           gradients and metrics: means over the ranks
        finish           clipping, optimizer step, critic target

    If the loss, one of its terms, another metric or the norm of the gradient is NaN or infinite, the update is skipped:
    parameters, optimizer, critic target and all buffers, such as the range of returns, are what they were before. With several
    ranks, it is skipped on all of them, because the metrics are averaged before.

    :param loss_module: the objective; its policy owns networks and optimizer, changed in place
    :param agc_clip: see :func:`~sb3_dreamer.common.optimizers.clip_grad_agc_`
    :param tau: soft update coefficient of the critic target
    """

    def __init__(self, loss_module: DreamerLoss, *, agc_clip: float, tau: float):
        self.loss_module = loss_module
        self.policy = loss_module.policy
        self.agc_clip = agc_clip
        self.tau = tau
        self.metric_names: tuple[str, ...] = ()
        trained = {id(parameter) for group in self.policy.optimizer.param_groups for parameter in group["params"]}
        named = self.policy.named_parameters()
        # World model, actor and critic. A part that is frozen later stays, with norms of 0.
        self.parts = dict.fromkeys((part_of(name) for name, parameter in named if id(parameter) in trained), 0)

    def __call__(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """
        :param batch: B windows of T rows
        :param noise: all noise of the update; None: draw it
        :return: posterior and metrics, detached
        """
        optimizer = self.policy.optimizer
        if isinstance(optimizer, LaProp):
            # On CUDA also without capturing, because a step is then skipped by a flag that stays on the device.
            if self.policy.device.type == "cuda" and not optimizer.is_capturable:
                optimizer.make_capturable()
            if optimizer.is_capturable:
                optimizer.sync_lr()
        return self.run(batch, noise)

    def run(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """As :meth:`__call__`, with the learning rates that a capturable optimizer has on the device. This can be captured."""
        started = self.start(batch, noise)
        differentiated = self.differentiate(started, self.gather(started.preview.statistics))
        self.reduce(differentiated)
        return self.finish(started.kept, differentiated)

    def start(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> Started:
        """
        First piece.

        :param batch: B windows of T rows
        :param noise: all noise of the update; None: draw it
        :return: what the other pieces need
        """
        # Drawn outside of the objective, so that the numbers do not change if the objective is compiled.
        noise = self.loss_module.draw_noise(*batch.rewards.shape) if noise is None else noise
        kept = [buffer.clone() for buffer in self.policy.buffers()]
        with self.policy.autocast():
            return Started(batch, self.look_ahead(batch, noise), kept)

    def gather(self, statistics: th.Tensor) -> th.Tensor:
        """:return: the statistics (K,) of all R ranks (R, K)"""
        return statistics.unsqueeze(0)

    def differentiate(self, started: Started, statistics: th.Tensor) -> Differentiated:
        """
        Second piece: fill ``grad`` of all parameters.

        :param started: result of the first piece
        :param statistics: result of :meth:`gather` (R, K)
        :return: posterior and metrics
        """
        with self.policy.autocast():
            output = self.evaluate(started.batch, started.preview, statistics)
        self.compute_gradients(output.loss)
        return Differentiated.of(output)

    def reduce(self, differentiated: Differentiated) -> None:
        """Replace gradients and metrics by their means over all ranks."""

    def finish(self, kept: list[th.Tensor], differentiated: Differentiated) -> UpdateResult:
        """
        Third piece: clipping, optimizer step and critic target.

        :param kept: the buffers as they were before the update
        :param differentiated: result of the second piece, reduced
        :return: posterior and metrics
        """
        with_grad = [(part_of(name), p) for name, p in self.policy.named_parameters() if p.grad is not None]
        counts = self.parts | Counter(part for part, _ in with_grad)
        grad_norms, is_clipped = clip_grad_agc_([p for _, p in with_grad], self.agc_clip)  # 2 x (P,)
        metrics = {"train/grad_norm": grad_norms.norm(), **by_part("train/grad_norm", grad_norms, counts, th.norm)}
        metrics |= by_part("train/clip_share", is_clipped.float(), counts, lambda own: own.sum() / max(len(own), 1))
        values = th.cat([differentiated.values.float(), as_vector(metrics)])  # (M,)
        is_finite = values.isfinite().all()
        self.step_if(is_finite, kept)
        step_norms = self.step_norms([p for _, p in with_grad], counts)
        self.metric_names = (*differentiated.names, *metrics, *step_norms)
        if step_norms:
            values = th.cat([values, as_vector(step_norms)])  # (M,)
        return UpdateResult(differentiated.posterior, values, is_finite)

    @th.no_grad()
    def step_norms(self, parameters: list[nn.Parameter], counts: dict[str, int]) -> dict[str, th.Tensor]:
        """
        :param parameters: those with a gradient
        :param counts: see :func:`by_part`
        :return: norm of the last change of each part's parameters, scalars; empty with another optimizer than LaProp
        """
        if not isinstance(self.policy.optimizer, LaProp):
            return {}
        norms = self.policy.optimizer.step_norms()
        return by_part("train/update_norm", th.stack([norms[parameter] for parameter in parameters]), counts, th.norm)

    @th.no_grad()
    def step_if(self, is_finite: th.Tensor, kept: list[th.Tensor]) -> None:
        """
        Optimizer step and critic target, or nothing.

        :param is_finite: whether to make them, a bool on the device
        :param kept: the buffers as they were before the update; they are restored if it is skipped
        """
        policy = self.policy
        if isinstance(policy.optimizer, LaProp) and policy.optimizer.is_capturable:
            targets = list(policy.critic_target.parameters())
            kept = kept + [target.clone() for target in targets]
            policy.optimizer.step_if(is_finite)
            policy.update_target(self.tau)
            for tensor, before in zip([*policy.buffers(), *targets], kept, strict=True):
                th.where(is_finite, tensor, before, out=tensor)
        elif is_finite:  # with another optimizer than LaProp, this waits for the device
            policy.optimizer.step()
            policy.update_target(self.tau)
        else:
            for buffer, before in zip(policy.buffers(), kept, strict=True):
                buffer.copy_(before)

    def look_ahead(self, batch: SequenceBatch, noise: UpdateNoise) -> Preview:
        """As :meth:`DreamerLoss.look_ahead`."""
        return self.loss_module.look_ahead(batch, noise)

    def evaluate(self, batch: SequenceBatch, preview: Preview, statistics: th.Tensor) -> LossOutput:
        """As :meth:`DreamerLoss.evaluate`."""
        return self.loss_module.evaluate(batch, preview, statistics)

    def compute_gradients(self, loss: th.Tensor) -> None:
        """
        Fill ``grad`` of every trainable parameter, with the strides of the parameter. With other strides the optimizer's
        foreach operations would fall back to one tensor at a time.

        :param loss: the loss to minimise
        """
        self.policy.optimizer.zero_grad(set_to_none=True)  # drop stale gradients of parameters frozen since
        parameters = self.policy.trainable_parameters()
        gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        seen: set[int] = set()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            # Parameters that are summed may share one gradient tensor, but gradients are clipped in place.
            if gradient.stride() != parameter.stride() or gradient.data_ptr() in seen:
                gradient = th.empty_like(parameter).copy_(gradient)
            seen.add(gradient.data_ptr())
            parameter.grad = gradient
