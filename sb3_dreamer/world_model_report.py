"""Callbacks that show what the world model predicts: open-loop predictions beside the truth, and imagined trajectories."""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, Logger, TensorBoardOutputFormat

from sb3_dreamer.common.pictures import (
    CONTEXT,
    PREDICTED,
    as_gif,
    bars,
    beside,
    cart_pole,
    error_figure,
    frozen_lake,
    open_loop_video,
    side_by_side,
    to_rgb,
    trace_figure,
    with_text,
)
from sb3_dreamer.common.preprocessing import SINGLE_KEY, as_array_dict
from sb3_dreamer.dreamerv3.predictions import Imagination, OpenLoop
from sb3_dreamer.world_model_audit import Audit, audit_world_model, has_pixels, pixels_of

if TYPE_CHECKING:
    from sb3_dreamer.dreamerv3 import DreamerV3

NOT_TEXT = ("stdout", "log", "json", "csv")
# Largest position and angle in the observation space of gymnasium's CartPole.
CART_POLE_LIMITS = (4.8, math.radians(24))


class ReportCallback(BaseCallback):
    """
    Base of callbacks that make a report at regular steps and at the end of ``learn``. With several ranks, the main rank makes
    it. A report does not change training.

    :param every: environment steps between reports, counted over all environments
    :param burn_in: number of rows that are observed
    :param horizon: number of steps that are predicted
    :param folder: folder of the files; None: ``world_model`` in the folder of ``tensorboard_log`` or of your own logger;
        without them, no files
    :param fps: frames per second of videos
    :param verbose: 1 prints the name of each file
    :param counts: further whole numbers by name
    :raises ValueError: if a whole number is below 1 or ``fps`` not positive; at the start of ``learn`` if the model is not a
        DreamerV3, reconstructs nothing, or was trained with ``VecNormalize`` and is without it
    """

    model: "DreamerV3"

    def __init__(
        self, every: int, burn_in: int, horizon: int, folder: str | Path | None, fps: float, verbose: int, **counts: int
    ):
        super().__init__(verbose)
        for name, value in dict(every=every, burn_in=burn_in, horizon=horizon, **counts).items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if not fps > 0:
            raise ValueError(f"`fps` must be a positive number, got {fps}")
        self.every, self.burn_in, self.horizon, self.folder, self.fps = every, burn_in, horizon, folder, fps
        self._last = -1

    def _on_training_start(self) -> None:
        if not hasattr(self.model, "predict_open_loop"):
            raise ValueError(f"`{type(self).__name__}` shows a DreamerV3, got {type(self.model).__name__}")
        if not self.model.policy.world_model.decoded_keys:
            raise ValueError(
                f"`{type(self).__name__}` shows observations, but the model reconstructs none, see `decoder_keys`"
            )
        self.model.check_statistics()
        if not self.has_place:
            warnings.warn(f"`{type(self).__name__}` writes no pictures: give it a `folder`, or the model a `tensorboard_log`")
        self._last = self.model.num_timesteps

    @property
    def has_place(self) -> bool:
        """Whether pictures are written: without a log of the user, SB3's logger only has a temporary folder."""
        return self.folder is not None or self.model.tensorboard_log is not None or self.model._custom_logger

    def _on_step(self) -> bool:
        if self.model.num_timesteps - self._last >= self.every:
            self._report_if_possible()
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._last:
            self._report_if_possible()

    def _report_if_possible(self) -> None:
        self._last = self.model.num_timesteps
        if self.model._ranks.is_main and self.model.replay_buffer.filled.max() > self.rows_needed:
            self.report()
            # With the next line of SB3 there may already be another report, and after the end of training there is no line.
            self.logger.dump(self.model.num_timesteps)

    def report_on(self, model: "DreamerV3") -> None:
        """
        Write one report about a model that is not learning, such as a loaded one with its replay buffer.

        :param model: is not changed
        :raises ValueError: if this callback has no ``folder``, the replay buffer is too short, or as at the start of ``learn``
        """
        if self.folder is None:
            raise ValueError("`folder` must be given for a report on a model that is not learning, got None")
        loggers = {name: value for name, value in vars(model).items() if name == "_logger"}
        model._logger = Logger(folder=None, output_formats=[])
        try:
            self.init_callback(model)
            self._on_training_start()
            rows = int(model.replay_buffer.filled.max())
            if rows <= self.rows_needed:
                raise ValueError(
                    f"The replay buffer must have more than {self.rows_needed} rows of an environment, got {rows}"
                )
            self.report()
        finally:
            del model._logger
            vars(model).update(loggers)

    @property
    def rows_needed(self) -> int:
        """Length of the sequences that are drawn from the replay buffer."""
        raise NotImplementedError

    def report(self) -> None:
        """Make a report now."""
        raise NotImplementedError

    def _path(self, name: str) -> Path | None:
        """:return: path of a file of this step; None if there is no folder"""
        folder = self.folder
        if folder is None and self.has_place and self.logger.dir:
            folder = Path(self.logger.dir) / "world_model"
        if folder is None:
            return None
        path = Path(folder) / name.replace("/", "_").format(step=self.model.num_timesteps)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.verbose >= 1:
            print(f"Writing {path}")
        return path

    def _log_video(self, key: str, file_name: str, frames: np.ndarray) -> None:
        """Write frames (T, h, w, 3) to TensorBoard and to a file."""
        gif, path = as_gif(frames, self.fps), self._path(file_name)
        if path is not None:
            path.write_bytes(gif)
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                # Not SB3's `Video`, because torch's `add_video` writes nothing with moviepy 2.
                from tensorboard.compat.proto.summary_pb2 import Summary

                _, height, width, colors = frames.shape
                image = Summary.Image(height=height, width=width, colorspace=colors, encoded_image_string=gif)
                summary = Summary(value=[Summary.Value(tag=key, image=image)])
                output.writer.file_writer.add_summary(summary, self.model.num_timesteps)  # type: ignore

    def _log_figure(self, key: str, file_name: str, figure: Any) -> None:
        path = self._path(file_name)
        if path is not None:
            figure.savefig(path, dpi=80)
        self.logger.record(key, Figure(figure, close=True), exclude=NOT_TEXT)


class WorldModelReportCallback(ReportCallback):
    """
    Show open-loop predictions of replayed sequences: the first rows are observed, the others predicted from the true actions.

    - For each image, a video with one column per sequence: truth, prediction, difference. Green frame: observed, red:
      predicted, grey: after the start of an episode that the model cannot foresee. In TensorBoard ``open_loop/video/KEY``, as
      file ``open_loop_KEY_STEPS.gif``.
    - For each vector, true and predicted traces: ``open_loop/traces/KEY``, ``traces_KEY_STEPS.png``.
    - The audit, see :func:`~sb3_dreamer.world_model_audit.audit_world_model`: errors by horizon step
      ``open_loop/NAME_step_K``, their mean ``open_loop/NAME``, figures, number of faults ``open_loop/n_faults`` and the
      verdict ``open_loop/verdict``, as file ``audit_STEPS.txt``.

    :param every: environment steps between reports, counted over all environments
    :param n_sequences: number of sequences in videos and figures; errors are measured on ten times as many
    :param burn_in: number of rows that are observed
    :param horizon: number of rows that are predicted
    :param folder: as for :class:`ReportCallback`
    :param fps: frames per second of videos
    :param verbose: 1 prints the name of each file
    :raises ValueError: as :class:`ReportCallback`, or if another number is below 1
    """

    def __init__(
        self,
        every: int = 10_000,
        n_sequences: int = 6,
        burn_in: int = 5,
        horizon: int = 15,
        folder: str | Path | None = None,
        fps: float = 5.0,
        verbose: int = 0,
    ):
        super().__init__(every, burn_in, horizon, folder, fps, verbose, n_sequences=n_sequences)
        self.n_sequences = n_sequences

    @property
    def rows_needed(self) -> int:
        """See :attr:`ReportCallback.rows_needed`."""
        return self.burn_in + self.horizon

    def report(self) -> None:
        """Log videos, traces, errors and the audit now."""
        arguments: Any = dict(burn_in=self.burn_in, horizon=self.horizon, seed=self.model.num_timesteps)
        self._log_audit(audit_world_model(self.model, 10 * self.n_sequences, **arguments))
        self._log_sequences(self.model.predict_open_loop(n_sequences=self.n_sequences, **arguments))

    def _log_audit(self, audit: Audit) -> None:
        """Write errors, verdict and figures."""
        errors = audit.observations | {name: audit.heads[name].error for name in ("reward", "continue")}
        for name, values in errors.items():
            if np.isfinite(values).any():
                is_short = name in ("reward", "continue")
                self.logger.record(f"open_loop/{name}", float(np.nanmean(values)), exclude=None if is_short else "stdout")
            for step, value in enumerate(values, start=1):
                if np.isfinite(value):
                    self.logger.record(f"open_loop/{name}_step_{step}", float(value), exclude="stdout")
        self.logger.record("open_loop/n_faults", sum(finding.is_fault for finding in audit.findings))
        self.logger.record("open_loop/verdict", f"```\n{audit}\n```", exclude=NOT_TEXT)  # Markdown in TensorBoard
        self._log_figure("open_loop/errors", "errors_{step}.png", error_figure(errors))
        self._log_figure("open_loop/audit", "audit_{step}.png", audit.figure())
        path = self._path("audit_{step}.txt")
        if path is not None:
            path.write_text(f"{audit}\n")

    def _log_sequences(self, result: OpenLoop) -> None:
        """Write a video of each image and the traces of each vector."""
        for key, prediction in as_array_dict(result.predicted).items():
            truth = as_array_dict(result.observations)[key]
            if has_pixels(self.model.policy, key):
                pixels = [pixels_of(self.model.policy, key, array) for array in (truth, prediction)]
                frames = open_loop_video(pixels[0], pixels[1], self.burn_in, result.is_valid)
                self._log_video(f"open_loop/video/{key}", f"open_loop_{key}_{{step}}.gif", frames)
            else:
                vectors = [array.reshape(*array.shape[:2], -1) for array in (truth, prediction)]
                figure = trace_figure(vectors[0], vectors[1], self.burn_in, result.is_valid, key)
                self._log_figure(f"open_loop/traces/{key}", f"traces_{key}_{{step}}.png", figure)


class DreamCallback(ReportCallback):
    """
    Show what the actor imagines from states of the replay buffer. Below each picture are value, reward, probability that the
    episode continues, and the action that follows. In TensorBoard ``imagination/video``, as file ``imagination_STEPS.gif``.

    Images are shown as they are predicted, those of a Dict side by side, CartPole and FrozenLake are drawn, other vectors are
    shown as bars.

    :param every: environment steps between reports, counted over all environments
    :param n_trajectories: number of trajectories, side by side
    :param horizon: steps of each trajectory
    :param burn_in: rows that are observed before the start
    :param picture: an observation to its picture (h, w, 3) uint8; it is in the layout of ``model.observation_space``, where
        SB3 puts the channels of uint8 images first, without the normalisation of ``VecNormalize``
    :param folder: as for :class:`ReportCallback`
    :param fps: frames per second
    :param verbose: 1 prints the name of each file
    :raises ValueError: as :class:`ReportCallback`, or if another number is below 1
    """

    def __init__(
        self,
        every: int = 10_000,
        n_trajectories: int = 4,
        horizon: int = 15,
        burn_in: int = 5,
        picture: Callable[[Any], np.ndarray] | None = None,
        folder: str | Path | None = None,
        fps: float = 5.0,
        verbose: int = 0,
    ):
        super().__init__(every, burn_in, horizon, folder, fps, verbose, n_trajectories=n_trajectories)
        self.n_trajectories, self.picture = n_trajectories, picture

    @property
    def rows_needed(self) -> int:
        """See :attr:`ReportCallback.rows_needed`."""
        return self.burn_in + 1

    def report(self) -> None:
        """Log a video now."""
        seed = self.model.num_timesteps
        latents = self.model.predict_open_loop(
            burn_in=self.burn_in, horizon=1, n_sequences=self.n_trajectories, seed=seed
        ).latents
        start = tuple(part[:, self.burn_in - 1] for part in latents)
        imagined = self.model.imagine(state=start, horizon=self.horizon, seed=seed)
        self._log_video("imagination/video", "imagination_{step}.gif", self.frames(imagined))

    def frames(self, imagined: Imagination) -> np.ndarray:
        """
        :param imagined: n trajectories of H steps
        :return: (H + 1, height, width, 3) uint8; the start has a green frame
        """
        pictures = self._pictures(imagined.observations)  # (n, H + 1, h, w, 3)
        frames = []
        for t in range(pictures.shape[1]):
            row = []
            for i in range(len(pictures)):
                action = np.array2string(imagined.actions[i, t], precision=2) if t < imagined.actions.shape[1] else "-"
                lines = [
                    f"value {imagined.values[i, t]:.3g}",
                    f"reward {imagined.rewards[i, t]:.2g}",
                    f"continue {imagined.continues[i, t]:.2f}",
                    f"action {action}"[:24],
                ]
                row.append(with_text(pictures[i, t], lines, CONTEXT if t == 0 else PREDICTED))
            frames.append(side_by_side(np.stack(row)))
        return np.stack(frames)

    def _pictures(self, observations: Any) -> np.ndarray:
        """:return: pictures of observations (n, H + 1, \\*space.shape), (n, H + 1, h, w, 3)"""
        if self.picture is None:
            by_key, policy = as_array_dict(observations), self.model.policy
            images = [to_rgb(pixels_of(policy, key, array)) for key, array in by_key.items() if has_pixels(policy, key)]
            if images:
                return beside(images)
        draw = self.picture or self._known_picture()
        by_key = self._unnormalized(as_array_dict(observations))
        n, n_rows = next(iter(by_key.values())).shape[:2]
        is_dict = isinstance(observations, dict)

        def one(i: int, t: int) -> Any:
            return {key: array[i, t] for key, array in by_key.items()} if is_dict else by_key[SINGLE_KEY][i, t]

        return np.stack([np.stack([draw(one(i, t)) for t in range(n_rows)]) for i in range(n)])

    def _unnormalized(self, by_key: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """:return: observations without the normalisation of VecNormalize"""
        env = self.model._vec_normalize_env
        if env is None or not env.norm_obs:
            return by_key
        if isinstance(env.obs_rms, dict):
            statistics = {key: env.obs_rms[key] for key in by_key.keys() & env.obs_rms.keys()}
        else:
            statistics = {SINGLE_KEY: env.obs_rms}
        return by_key | {key: env._unnormalize_obs(by_key[key], one) for key, one in statistics.items()}

    def _known_picture(self) -> Callable[[Any], np.ndarray]:
        """:return: the function that draws observations of this environment"""
        space, env = self.model.observation_space, self.model.get_env()
        if isinstance(space, spaces.Box) and space.shape == (4,) and np.allclose(space.high[[0, 2]], CART_POLE_LIMITS):
            return cart_pole
        if isinstance(space, spaces.Discrete) and env is not None:
            with suppress(NotImplementedError):  # some vectorised environments give no attributes
                if env.has_attr("desc"):
                    desc = np.asarray(env.get_attr("desc", indices=[0])[0])
                    if desc.size == space.n:
                        return lambda observation: frozen_lake(observation, desc)
        return lambda observation: bars(np.concatenate([np.ravel(x) for x in as_array_dict(observation).values()]))
