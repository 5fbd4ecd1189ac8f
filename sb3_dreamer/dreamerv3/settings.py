"""What follows from the algorithm's settings, and how a change of one is taken up."""

from typing import Any, cast

import torch as th

from sb3_dreamer.common.distributed.ranks import Agreement
from sb3_dreamer.common.replay.write_back import LatentWriteBack
from sb3_dreamer.common.schedules import PiecewiseSchedule, lr_scaling_factor, make_schedule, warmup_factor
from sb3_dreamer.common.training_ratio import TrainRatio
from sb3_dreamer.dreamerv3.checks import FIXED, Model, check_arguments, check_unchanged, rank_invariants, warn_if_small
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.saving import SavedAlgorithm

OF_THE_LOSS = ("imagination_horizon", "gamma", "return_lambda", "ent_coef", "free_nats", "imagine_last", "loss_scales")
# The update has these as constants; where it is compiled or captured, a change of one makes it again.
OF_THE_UPDATE = (*OF_THE_LOSS, "agc_clip", "tau", "precision", "compile", "batch_size", "batch_length", "fused")
# Read where they are used, or kept up to date by `_apply_settings`.
OF_THE_LOOP = (
    "learning_rate",
    "lr_warmup_steps",
    "learning_starts",
    "training_ratio",
    "train_freq",
    "online_queue",
    "distributed_scaling",
    "log_every_updates",
)


def frozen(value: Any) -> Any:
    """:return: a copy of dicts and lists, so that a change in place shows"""
    if isinstance(value, dict):
        return {key: frozen(part) for key, part in value.items()}
    return [frozen(part) for part in value] if isinstance(value, list) else value


class AdjustableAlgorithm(SavedAlgorithm):
    """The settings of :class:`~sb3_dreamer.dreamerv3.dreamerv3.DreamerV3`, its base."""

    policy: DreamerPolicy
    learning_rate: Any
    lr_warmup_steps: int
    training_ratio: float
    precision: str
    compile: bool | str
    agc_clip: float
    distributed_scaling: str | None
    loss_module: DreamerLoss
    _train_ratio: TrainRatio
    _settings: dict[str, Any]

    def _setup_training(self) -> None:
        """Whatever follows from the settings; made again at each ``learn``."""
        self._apply_settings()
        self._write_back = LatentWriteBack(self.replay_buffer)
        self._setup_update()

    def _apply_settings(self) -> None:
        """
        Check the settings, then bring everything but the update up to date. Recurrent state, optimizer and updates due stay.

        :raises ValueError: as the constructor, or if a setting has changed that the networks or the buffer were built with
        """
        model = cast(Model, self)
        check_arguments(model)
        check_unchanged(model, self._settings)
        if "learning_rate" in self._changed_settings():
            self._setup_lr_schedule()
        self.policy.set_precision(self.precision)
        self._convert_train_freq()
        self._train_ratio.set_rate(self.training_ratio, self._ranks.size * self.batch_size * self.batch_length)
        self.replay_buffer.online_queue = self.online_queue
        self.replay_buffer.set_window(self.batch_length)
        self.replay_buffer.set_image_keys(self.policy.image_keys)
        self._settings = {name: frozen(getattr(self, name)) for name in (*OF_THE_UPDATE, *OF_THE_LOOP, *FIXED)}

    def _setup_update(self) -> None:
        """Make objective, update and step of acting from the settings."""
        raise NotImplementedError

    def _changed_settings(self) -> list[str]:
        """:return: what a user or a callback has set since the settings were taken up"""
        return [name for name, value in self._settings.items() if getattr(self, name) != value]

    def _take_up_settings(self) -> None:
        """
        Before the next update: what a callback has set takes effect.

        :raises ValueError: as :meth:`_apply_settings`
        """
        changed = self._changed_settings()
        if not changed:
            return
        before = self._settings
        self._apply_settings()
        if not set(changed).isdisjoint(OF_THE_UPDATE):
            try:
                self._setup_update()
            except ValueError:
                self._settings = before  # refused again before the next update
                raise
        if "batch_length" in changed:
            warn_if_small(cast(Model, self))

    def _take_up_together(self, agreed: Agreement) -> Agreement:
        """
        As :meth:`_take_up_settings`, after a rollout and on all ranks, where at least one has changed a setting.

        :param agreed: what held for all before
        :return: what holds for all now
        :raises ValueError: on all ranks, if they differ
        """
        facts = rank_invariants(cast(Model, self), self._total_timesteps)
        self._ranks.check_equal(facts, hint=": a callback that changes settings needs `all_ranks = True`")
        self._take_up_settings()
        can_sample = self._ranks.sync_rollout(0, True, self.replay_buffer.can_sample()).can_sample
        return agreed._replace(can_sample=can_sample)

    # ---- the learning rate ----

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = make_schedule(self.learning_rate)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """The one place where the learning rate is set: schedule times warm-up, whatever the optimiser, times ``lr_scale``."""
        is_piecewise = isinstance(self.lr_schedule, PiecewiseSchedule)
        rate = self.lr_schedule(self.num_timesteps if is_piecewise else self._current_progress_remaining)
        rate *= warmup_factor(self._n_updates, self.lr_warmup_steps)
        rate *= lr_scaling_factor(self.distributed_scaling, self._ranks.size, 1.0 - self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
