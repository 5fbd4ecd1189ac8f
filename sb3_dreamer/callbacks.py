"""Callbacks for DreamerV3."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from sb3_dreamer.common.checkpoint import find_checkpoints, remove_old, set_aside, step_of
from sb3_dreamer.common.env_state import check_states
from sb3_dreamer.world_model_report import DreamCallback, WorldModelReportCallback

if TYPE_CHECKING:
    from sb3_dreamer.dreamerv3 import DreamerV3

__all__ = ["DreamCallback", "DreamerCheckpointCallback", "HistogramCallback", "WorldModelReportCallback"]


class StopSignals:
    """
    Take note of Ctrl-C and SIGTERM instead of ending the process. A second one ends it at once.

    :ivar received: name of the signal, None before it came
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Replace the handlers of the signals. Python allows this in the main thread only; in others, nothing happens."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = signal.Signals(number).name
        self.restore()
        message = (
            f"{self.received}: training ends after this step, with a checkpoint. A second signal ends the process at once.\n"
        )
        os.write(2, message.encode())  # `print` must not be used here: the signal may have interrupted it


class DreamerCheckpointCallback(BaseCallback):
    """
    Save everything that the rest of the run depends on: weights, optimizer, replay buffer, VecNormalize, counters, random
    states, recurrent state, and the state of the environments if they have the methods ``get_state`` and ``set_state``.
    :meth:`DreamerV3.resume` continues from there.

    A checkpoint is a folder, ``path/checkpoint_STEPS``. It is complete or absent: the run may be killed at any moment, also
    while it saves. Rows of the replay buffer that the last checkpoint has already are not written again.

    With torchrun, all ranks save their parts of one checkpoint, in a folder that all of them reach.

    Ctrl-C and SIGTERM save a checkpoint and end ``learn`` as if a callback had stopped it. A second signal ends the process.

    :param save_freq: environment steps between checkpoints, counted over all environments; one more is saved at the end of
        ``learn``
    :param path: folder of the checkpoints
    :param keep_last: number of checkpoints to keep
    :param verbose: 1 prints the name of each checkpoint
    :raises ValueError: if an argument is below 1; at the start of ``learn`` if ``path`` has checkpoints of another run, or if
        the model is not a DreamerV3
    :raises TypeError: at the start of ``learn``, if ``get_state`` of an environment returns something that cannot be stored
    """

    model: "DreamerV3"
    all_ranks = True  # with torchrun, each rank saves its own rows

    def __init__(self, save_freq: int, path: str | Path, keep_last: int = 2, verbose: int = 0):
        super().__init__(verbose)
        for name, value in (("save_freq", save_freq), ("keep_last", keep_last)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        self.save_freq = save_freq
        self.path = Path(path)
        self.keep_last = keep_last
        self.signals = StopSignals()
        self.is_main = True
        self._saved_at = 0

    def _on_training_start(self) -> None:
        if not hasattr(self.model, "save_checkpoint"):
            raise ValueError(f"`DreamerCheckpointCallback` saves a DreamerV3, got {type(self.model).__name__}")
        self.path = self.path.resolve()
        self._check_folder()
        check_states(self.training_env)
        self.is_main = self.model._ranks.is_main
        if self.is_main:
            set_aside(self.path, self.model.num_timesteps)  # those that are newer than the one that was resumed
        self._saved_at = self.model.num_timesteps
        self.signals.received = None
        self.signals.install()
        self.model.at_end_of_learn(self.signals.restore)
        self.model.save_if_workers_end = self.save_if_stopped

    def _check_folder(self) -> None:
        """
        Check that the folder belongs to this run.

        :raises ValueError: if it does not
        """
        last, steps = self.model.last_checkpoint, self.model.num_timesteps
        if find_checkpoints(self.path) and (last is None or last.parent != self.path):
            raise ValueError(
                f"`path` has checkpoints of another run, {self.path}: continue that run with `DreamerV3.resume(path, env)`, "
                "or choose another folder"
            )
        if last is not None and last.parent == self.path and steps < step_of(last):
            self.model.num_timesteps = self.model.steps_before_learn  # so that the advice can be followed
            raise ValueError(
                f"`learn` starts at step {steps}, but `path` has a checkpoint of this run with {step_of(last)} steps: pass "
                "`reset_num_timesteps=False` to continue, or choose another folder"
            )

    def save_if_stopped(self) -> bool:
        """
        Ctrl-C may end the processes of the environments, too, so that the step that it interrupts fails.

        :return: whether there was such a signal; then a checkpoint has been saved
        """
        if self.signals.received is not None:
            self.save()
        return self.signals.received is not None

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._saved_at >= self.save_freq:
            self.save()

    def _on_step(self) -> bool:
        return self.signals.received is None

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> None:
        """Save a checkpoint now, unless there is one of this step, and remove old ones."""
        folder = self.model.save_checkpoint(self.path)
        self._saved_at = self.model.num_timesteps
        if not self.is_main:
            return
        remove_old(self.path, self.keep_last)
        if self.verbose >= 1:
            print(f"Saved {folder}")


class HistogramCallback(BaseCallback):
    """
    Histograms of all parameters and of their last gradients, after clipping, in TensorBoard. Other outputs of the logger
    leave them out.

    :param every: environment steps between two sets of histograms, counted over all environments; they are written with the
        next line of the log
    :raises ValueError: if ``every`` is below 1; at the start of ``learn`` if the model does not log to TensorBoard
    """

    model: "DreamerV3"

    def __init__(self, every: int):
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}")
        self.every = every
        self._recorded_at = 0

    def _on_training_start(self) -> None:
        if not any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats):
            raise ValueError("`HistogramCallback` needs TensorBoard: pass `tensorboard_log` to the model")
        self._recorded_at = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._recorded_at >= self.every:
            self._recorded_at = self.num_timesteps
            self.record()

    def record(self) -> None:
        """Record histograms for the next line of the log."""
        for name, parameter in self.model.policy.named_parameters():
            for kind, values in (("parameters", parameter), ("gradients", parameter.grad)):
                if values is not None:
                    others = ("stdout", "log", "json", "csv")
                    self.logger.record(f"{kind}/{name}", values.detach().float().cpu(), exclude=others)

    def _on_step(self) -> bool:
        return True
