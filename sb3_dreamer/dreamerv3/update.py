"""One training update as a function of a batch: loss, gradient, clipping, optimizer step, critic target."""

from typing import NamedTuple

import torch as th

from sb3_dreamer.common.optimizers import LaProp, clip_grad_agc_
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossOutput


class UpdateResult(NamedTuple):
    """
    Result of an update: posterior (B, T, ...), metrics in the order of ``metric_names`` (M,), and whether all of these are
    finite, a bool on the device. If they are not, the update was skipped.
    """

    posterior: LatentState
    metrics: th.Tensor
    is_finite: th.Tensor


class TrainingUpdate:
    """
    Loss, gradient, clipping, optimizer step and critic target. Nothing is copied to the host, and the shapes of the batch
    determine all other shapes.

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
        # Drawn outside of the objective, so that the numbers do not change if the objective is compiled.
        noise = self.loss_module.draw_noise(*batch.rewards.shape) if noise is None else noise
        kept = [buffer.clone() for buffer in self.policy.buffers()]
        with self.policy.autocast():
            output = self.evaluate(batch, noise)
        self.compute_gradients(output.loss)
        grad_norm = clip_grad_agc_(self.policy.parameters(), self.agc_clip)
        metrics = {**output.metrics, "train/grad_norm": grad_norm}
        self.metric_names = tuple(metrics)
        values = self.mean_over_ranks(th.stack([value.detach().float() for value in metrics.values()]))  # (M,)
        is_finite = values.isfinite().all()
        self.step_if(is_finite, kept)
        return UpdateResult(LatentState(*(part.detach() for part in output.states)), values, is_finite)

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

    def evaluate(self, batch: SequenceBatch, noise: UpdateNoise) -> LossOutput:
        """:return: result of the objective, see :meth:`DreamerLoss.forward`"""
        return self.loss_module(batch, noise)

    def mean_over_ranks(self, metrics: th.Tensor) -> th.Tensor:
        """:return: means of the metrics over the processes that train together (M,)"""
        return metrics

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
