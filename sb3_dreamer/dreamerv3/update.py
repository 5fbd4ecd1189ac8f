"""One training update as a function of a batch, and the step of acting: as they stand, compiled, or recorded and replayed."""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dreamer.common.optimizers import LaProp, clip_grad_agc_
from sb3_dreamer.common.recorders import Recorder, clone_tensors, record_warm, tensors_of
from sb3_dreamer.common.type_aliases import LatentState, PolicyState, SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.fused_weights import is_covered
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossOutput
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

MAX_VARIANTS = 64


class UpdateResult(NamedTuple):
    """What an update leaves behind: posterior (B, T, ...) and metrics in the order of ``metric_names`` (M,)."""

    posterior: LatentState
    metrics: th.Tensor


class TrainingUpdate:
    """
    Loss, gradient, clipping, step, slow critic. No number leaves the device, all shapes are fixed by those of the batch.

    :param loss_module: the objective; its policy owns networks and optimiser, changed in place
    :param agc_clip: see :func:`~sb3_dreamer.common.optimizers.clip_grad_agc_`
    :param tau: share of the critic that its slow copy takes
    :param is_compiled: compile the steps of the fused loops at the first batch
    :param is_whole: compile all of the objective around them, too
    :param verbose: 1 prints one line about that
    """

    def __init__(
        self,
        loss_module: DreamerLoss,
        *,
        agc_clip: float,
        tau: float,
        is_compiled: bool = False,
        is_whole: bool = False,
        verbose: int = 0,
    ):
        self.loss_module = loss_module
        self.objective: Callable[[SequenceBatch, UpdateNoise], LossOutput] = loss_module
        self.policy = loss_module.policy
        self.agc_clip = agc_clip
        self.tau = tau
        self.is_whole = is_whole
        self.must_compile = is_compiled and (is_whole or not self.policy.world_model.rssm.is_compiled)
        self.verbose = verbose
        self.metric_names: tuple[str, ...] = ()

    def __call__(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """
        :param batch: B windows of T rows
        :param noise: drawn if None
        :return: by-products, all detached
        """
        if self.must_compile:
            self.must_compile = False
            compile_update(self, batch)
        # Not by the objective itself, so that the numbers are the same where it is compiled.
        noise = self.loss_module.draw_noise(*batch.rewards.shape) if noise is None else noise
        with self.policy.autocast():
            output = self.evaluate(batch, noise)
        self.compute_gradients(output.loss)
        grad_norm = clip_grad_agc_(self.policy.parameters(), self.agc_clip)
        self.policy.optimizer.step()
        self.policy.update_target(self.tau)
        metrics = {**output.metrics, "train/grad_norm": grad_norm}
        self.metric_names = tuple(metrics)
        values = th.stack([value.detach().float() for value in metrics.values()])  # (M,)
        return UpdateResult(output.posterior.detach(), self.mean_over_ranks(values))

    def evaluate(self, batch: SequenceBatch, noise: UpdateNoise) -> LossOutput:
        """:return: the objective, as :meth:`DreamerLoss.forward`"""
        return self.objective(batch, noise)

    def mean_over_ranks(self, metrics: th.Tensor) -> th.Tensor:
        """:return: means of the metrics over the processes that train together (M,)"""
        return metrics

    def compute_gradients(self, loss: th.Tensor) -> None:
        """
        Fill ``grad`` of every trained parameter, laid out as the parameter is: elsewise the optimiser's joint operations
        fall back to one tensor at a time.

        :param loss: to minimise
        """
        self.policy.optimizer.zero_grad(set_to_none=True)  # what was frozen meanwhile must not move on
        parameters = self.policy.trainable_parameters()
        gradients = th.autograd.grad(loss, parameters, allow_unused=True)
        seen: set[int] = set()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            # Parameters that are added to each other may be handed one gradient, and it is clipped in place.
            if gradient.stride() != parameter.stride() or gradient.data_ptr() in seen:
                gradient = th.empty_like(parameter).copy_(gradient)
            seen.add(gradient.data_ptr())
            parameter.grad = gradient


def compile_update(update: TrainingUpdate, batch: SequenceBatch) -> None:
    """
    Compile the steps of the fused loops, and what is around them, for the shapes of this batch, or say why not and go on
    without.

    :param update: whose model it is for
    :param batch: any batch of the run
    """
    policy, rssm = update.policy, update.policy.world_model.rssm
    if not is_covered(rssm) and not update.is_whole:
        return
    kept = [buffer.clone() for buffer in policy.buffers()]
    start, rssm.is_compiled = time.perf_counter(), is_covered(rssm)
    if update.is_whole:
        # Numbers such as gamma are constants of what is compiled, and all models of a process count together.
        th._dynamo.config.recompile_limit = max(th._dynamo.config.recompile_limit, MAX_VARIANTS)
        update.objective = th.compile(update.loss_module.forward, dynamic=False)
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with th.random.fork_rng(devices), policy.autocast():
            loss = update.objective(batch, update.loss_module.draw_noise(*batch.rewards.shape)).loss
        th.autograd.grad(loss, policy.trainable_parameters(), allow_unused=True)  # outside of autocast, as in an update
        if update.verbose >= 1:
            parts = "the objective" if update.is_whole else "one step of observing, of its backward pass and of dreaming"
            print(f"Compiled {parts}: {time.perf_counter() - start:.0f} s")
    except Exception as error:
        rssm.is_compiled, update.objective = False, update.loss_module
        warnings.warn(f"Training goes on uncompiled (compile=False says so at once), for compiling failed: {error!r}")
    finally:
        for buffer, before in zip(policy.buffers(), kept, strict=True):
            buffer.copy_(before)


class RecordedUpdate:
    """
    A training update that is recorded at its first batch and replayed from then on. Parameters, optimiser and random state
    are after the recording as before it. Where shapes change, or where a tensor that the update reads or writes has moved in
    memory (``.to()``, a file loaded into the optimiser), it is recorded anew.

    :param update: what is recorded; its optimiser is :class:`LaProp`
    :param make_recorder: makes a new recorder
    """

    def __init__(self, update: TrainingUpdate, make_recorder: Callable[[], Recorder]):
        self.update = update
        self.make_recorder = make_recorder
        self.key: tuple[Any, ...] | None = None
        self.is_recordable = True

    @property
    def metric_names(self) -> tuple[str, ...]:
        """As those of the update."""
        return self.update.metric_names

    @property
    def optimizer(self) -> LaProp:
        """Of the policy."""
        assert isinstance(self.update.policy.optimizer, LaProp)
        return self.update.policy.optimizer

    def __call__(self, batch: SequenceBatch) -> UpdateResult:
        """
        :param batch: B windows of T rows
        :return: by-products, valid until the next call
        """
        if self.is_recordable and (self.key is None or self.key != self._key(batch)):
            self._record_or_give_up(batch)
        if not self.is_recordable:
            return self.update(batch)
        for mine, theirs in zip(tensors_of(self.inputs), tensors_of(batch), strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.optimizer.fill_rates()
        self.recorder.replay()
        return self.result

    def _state(self) -> list[th.Tensor]:
        """Everything that an update reads and changes."""
        policy = self.update.policy
        tensors = [*policy.parameters(), *policy.buffers()]
        for state in self.optimizer.state.values():
            tensors += tensors_of(dict(state))
        for group in self.optimizer.param_groups:
            tensors += [group[name] for name in ("step", "rate") if isinstance(group.get(name), th.Tensor)]
        return tensors

    def _key(self, batch: SequenceBatch) -> tuple[Any, ...]:
        shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(batch)]
        state = [(tensor.data_ptr(), tensor.requires_grad) for tensor in self._state()]
        return tuple(shapes), tuple(state)

    def _record_or_give_up(self, batch: SequenceBatch) -> None:
        start = time.perf_counter()
        try:
            self._record(batch)
            message = f"Recorded the training update, it is replayed from now on: {time.perf_counter() - start:.0f} s"
            if self.update.verbose >= 1:
                print(message)
        except Exception as error:
            self.is_recordable = False
            self.optimizer.stop_recording()
            warnings.warn(f"Training goes on unrecorded (compile=False says so at once), for recording failed: {error!r}")

    def _record(self, batch: SequenceBatch) -> None:
        self.optimizer.prepare_recording()
        self.inputs: SequenceBatch = clone_tensors(batch)
        self.recorder = self.make_recorder()
        state = self._state()
        before = [tensor.detach().clone() for tensor in state]
        try:
            self.result = record_warm(self.recorder, lambda: self.update(self.inputs))
        finally:
            self.recorder.settle()
            with th.no_grad():
                for tensor, kept in zip(state, before, strict=True):
                    tensor.copy_(kept)
        self.key = self._key(batch)


class RecordedStep:
    """
    :meth:`DreamerPolicy.step` for acting, recorded once for each number of environments and replayed. Parameters are read
    where they are, so updates in place are seen; where they have moved, the step is recorded anew.

    :param policy: acts
    :param make_recorder: makes a new recorder
    """

    def __init__(self, policy: DreamerPolicy, make_recorder: Callable[[], Recorder]):
        self.policy = policy
        self.make_recorder = make_recorder
        self.key: tuple[Any, ...] | None = None
        self.is_recordable = True

    def __call__(
        self, observations: PyTorchObs, state: PolicyState | None, episode_start: th.Tensor
    ) -> tuple[th.Tensor, PolicyState]:
        """As :meth:`DreamerPolicy.step`; the result is valid until the next call, which may be given its state."""
        state = self.policy.initial_state(len(episode_start)) if state is None else state
        new = (observations, state, episode_start.float())
        key = (
            tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(new)),
            tuple(tensor.data_ptr() for tensor in (*self.policy.parameters(), *self.policy.buffers())),
        )
        if self.is_recordable and key != self.key:
            try:
                self._record(new)
                self.key = key
            except Exception as error:
                self.is_recordable = False
                warnings.warn(f"Acting goes on unrecorded (compile=False says so at once), for recording failed: {error!r}")
        if not self.is_recordable:
            return self.policy.step(*new)
        for mine, theirs in zip(tensors_of(self.inputs), tensors_of(new), strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.recorder.replay()
        return self.result

    def _record(self, new: tuple[Any, ...]) -> None:
        self.inputs = clone_tensors(new)
        self.recorder = self.make_recorder()
        try:
            self.result = record_warm(self.recorder, lambda: self.policy.step(*self.inputs))
        finally:
            self.recorder.settle()
