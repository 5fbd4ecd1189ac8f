"""A training update whose objective is compiled at its first batch."""

import time
import warnings
from typing import Any

import torch as th

from sb3_dreamer.common.type_aliases import SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.fast.loss import FusedDreamerLoss
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossOutput, Preview
from sb3_dreamer.dreamerv3.update import Started, TrainingUpdate

# Settings such as gamma are constants in compiled code, and torch counts the variants of all models of a process together.
MAX_VARIANTS = 64


class CompiledUpdate(TrainingUpdate):
    """
    A compiled :class:`~sb3_dreamer.dreamerv3.update.TrainingUpdate`. If compiling fails, it warns and continues in eager mode.
    Compiled code is cut where numbers are exchanged with other ranks.

    :param loss_module: see :class:`~sb3_dreamer.dreamerv3.update.TrainingUpdate`
    :param compile_steps: compile the steps of the fused loops
    :param compile_objective: compile everything around these steps, too, in two halves
    :param verbose: 1 prints how long compiling took
    :param settings: other arguments of :class:`~sb3_dreamer.dreamerv3.update.TrainingUpdate`
    """

    n_ranks = 1

    def __init__(
        self,
        loss_module: DreamerLoss,
        *,
        compile_steps: bool = False,
        compile_objective: bool = False,
        verbose: int = 0,
        **settings: Any,
    ):
        super().__init__(loss_module, **settings)
        self.compile_steps = compile_steps and isinstance(loss_module, FusedDreamerLoss)
        self.compile_objective = compile_objective
        self.needs_compile = self.compile_steps or compile_objective
        self.verbose = verbose
        self._set_compiled(False)

    def start(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> Started:
        """Same as :meth:`TrainingUpdate.start`, but compile at the first call."""
        self.compile_once(batch)
        return super().start(batch, noise)

    def compile_once(self, batch: SequenceBatch) -> None:
        """Compile for the shapes of this batch, unless that was done before."""
        if self.needs_compile:
            self.needs_compile = False
            self._compile(batch)

    def look_ahead(self, batch: SequenceBatch, noise: UpdateNoise) -> Preview:
        """Same as :meth:`TrainingUpdate.look_ahead`, compiled."""
        return self.halves[0](batch, noise)

    def evaluate(self, batch: SequenceBatch, preview: Preview, statistics: th.Tensor) -> LossOutput:
        """Same as :meth:`TrainingUpdate.evaluate`, compiled."""
        return self.halves[1](batch, preview, statistics)

    def _compile(self, batch: SequenceBatch) -> None:
        """Compile for the shapes of this batch. Buffers and the random state are unchanged afterwards."""
        policy, start = self.policy, time.perf_counter()
        kept = [buffer.clone() for buffer in policy.buffers()]
        self._set_compiled(True)
        devices = [policy.device] if policy.device.type == "cuda" else []
        try:
            with th.random.fork_rng(devices), policy.autocast():
                preview = self.look_ahead(batch, self.loss_module.draw_noise(*batch.rewards.shape))
            with policy.autocast():  # as in an update: two contexts, and the gradient outside
                loss = self.evaluate(batch, preview, preview.statistics.repeat(self.n_ranks, 1)).loss
            th.autograd.grad(loss, policy.trainable_parameters(), allow_unused=True)
            if self.verbose >= 1:
                steps = "one step of the observe scan, of its backward pass and of imagination"
                print(f"Compiled {'the objective' if self.compile_objective else steps}: {time.perf_counter() - start:.0f} s")
        except Exception as error:
            self._set_compiled(False)
            warnings.warn(f"torch.compile failed, continuing in eager mode (compile=False silences this): {error!r}")
        finally:
            for buffer, before in zip(policy.buffers(), kept, strict=True):
                buffer.copy_(before)

    def _set_compiled(self, is_compiled: bool) -> None:
        if isinstance(self.loss_module, FusedDreamerLoss):
            self.loss_module.is_compiled = is_compiled and self.compile_steps
        self.halves = self.loss_module.look_ahead, self.loss_module.evaluate
        if is_compiled and self.compile_objective:
            th._dynamo.config.recompile_limit = max(th._dynamo.config.recompile_limit, MAX_VARIANTS)
            look_ahead, evaluate = self.halves
            self.halves = th.compile(look_ahead, dynamic=False), th.compile(evaluate, dynamic=False)
