"""Save and resume runs: a checkpoint contains everything that the rest of a run depends on."""

import pathlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import set_random_seed

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.checkpoint import Checkpoint, CheckpointError, CheckpointWriter, checkpoint_folder, open_checkpoint
from sb3_dreamer.common.clock import TrainingClock
from sb3_dreamer.common.distributed.algorithm import DistributedOffPolicyAlgorithm
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.env_state import (
    check_statistics,
    generator_from,
    generator_state,
    get_states,
    get_statistics,
    set_statistics,
)
from sb3_dreamer.common.files import UNFINISHED, atomic_folder
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.random_states import get_random_states, set_random_states
from sb3_dreamer.common.replay.chunks import ReplayChunks, empty_like, put_before, read_chunks
from sb3_dreamer.common.save_util import explain_newer_numpy
from sb3_dreamer.common.schedules import TrainRatio
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.common.workers import WorkerError
from sb3_dreamer.dreamerv3.run_state import restore_env, restore_run, run_state, settings_from, stored_settings

SelfResumable = TypeVar("SelfResumable", bound="ResumableAlgorithm")

WEIGHTS = "weights.pth"


class ResumableAlgorithm(DistributedOffPolicyAlgorithm):
    """
    Saves and resumes runs. The functions below, and ``run_state.py``, say what a checkpoint contains.

    :param args: as those of :class:`~sb3_dreamer.common.distributed.algorithm.DistributedOffPolicyAlgorithm`
    :param kwargs: the same, by name
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]]
    replay_buffer: SequenceReplayBuffer
    _last_state: PolicyState | None
    _train_ratio: TrainRatio
    _clock: TrainingClock
    _metrics: MetricAverager

    def __init__(self, *args: Any, **kwargs: Any):
        # The last checkpoint of this run, what it contains of the replay buffer, and values that were not logged yet.
        self._last_checkpoint: Checkpoint | None = None
        self._replay_chunks: ReplayChunks | None = None
        self._pending_log: dict[str, Any] = {}
        self._saved_random_states: dict[str, Any] | None = None
        self._had_vec_normalize = False
        self.steps_before_learn = 0
        self.save_if_workers_end: Callable[[], bool] = lambda: False
        super().__init__(*args, **kwargs)

    def learn(self: SelfResumable, *args: Any, **kwargs: Any) -> SelfResumable:
        """As SB3's; if Ctrl-C has also ended the processes of the environments, a checkpoint callback saves the run."""
        self.save_if_workers_end = lambda: False  # until a callback of this `learn` sets it
        self.steps_before_learn = self.num_timesteps
        try:
            return super().learn(*args, **kwargs)
        except WorkerError:
            if not self.save_if_workers_end():
                raise
            return self

    def _setup_learn(
        self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        """As SB3's; values of a resumed run that were not logged yet are logged with the next ones."""
        self._warn_about_what_is_missing(reset_num_timesteps)
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        for name, values in self._pending_log.items():
            getattr(self.logger, name).update(values)
        self._pending_log = {}
        return setup

    @property
    def last_checkpoint(self) -> pathlib.Path | None:
        """The newest checkpoint of this run, or the one that it was resumed from."""
        return None if self._last_checkpoint is None else self._last_checkpoint.folder

    def save_checkpoint(self, path: str | pathlib.Path) -> pathlib.Path:
        """
        Save everything that the rest of the run depends on, as
        :class:`~sb3_dreamer.callbacks.DreamerCheckpointCallback` does during ``learn``. Call it between two rollouts.

        :param path: folder of the checkpoints
        :return: the new checkpoint, ``path/checkpoint_STEPS``; if this run has saved one of this step already, that one
        :raises FileExistsError: if there is one of this step of another run
        :raises OSError: if the folder cannot be written to, or the disk is full; older checkpoints are unchanged, and the
            message names the last one
        """
        try:
            return save_checkpoint(self, pathlib.Path(path).resolve())
        except FileExistsError:
            raise
        except OSError as error:
            last = f"the last complete one is {self.last_checkpoint}" if self.last_checkpoint else "there is none yet"
            raise OSError(error.errno, f"{error}. No checkpoint was saved in {path}; {last}") from error

    @classmethod
    def resume(
        cls: type[SelfResumable], path: str | pathlib.Path, env: GymEnv, device: th.device | str = "auto", **kwargs: Any
    ) -> SelfResumable:
        """
        Continue a run that was saved by :class:`~sb3_dreamer.callbacks.DreamerCheckpointCallback`.

        .. code-block:: python

            model = DreamerV3.resume("checkpoints", env)
            model.learn(100_000 - model.num_timesteps, reset_num_timesteps=False)

        On a CPU, the run then has the same weights as without the interruption if the environments have the methods
        ``get_state`` and ``set_state``; otherwise they begin a new episode.

        :param path: a checkpoint; the folder with several, of which the newest is read; or RL Zoo's folder of a run
        :param env: environment, wrapped as before
        :param device: where the model goes
        :param kwargs: arguments of the constructor, instead of those in the checkpoint. Functions and classes are not stored
            and must be passed again (the linear schedules of SB3 and RL Zoo are stored), also ``tensorboard_log``,
            ``verbose`` and the ``storage_folder`` of the replay buffer, which belong to the process.
        :return: the model
        :raises FileNotFoundError: if there is no checkpoint
        :raises CheckpointError: if it is damaged; the message names an older one
        :raises ValueError: if it does not fit the environment, or an argument is missing
        """
        checkpoint = open_checkpoint(pathlib.Path(path).resolve())
        content = checkpoint.content()
        model = cls(env=env, device=device, **settings_from(content["settings"], kwargs))
        load_content(model, checkpoint, content)
        return model

    def _warn_about_what_is_missing(self, reset_num_timesteps: bool) -> None:
        """Warn if a ``learn`` that goes on lacks something that the run had before it was saved."""
        if reset_num_timesteps or not self._n_updates or not self._ranks.is_main:
            return
        if not self.replay_buffer.size():
            warnings.warn(
                f"`learn` goes on after {self.num_timesteps} steps with an empty replay buffer: load that of the run "
                "(`load_replay_buffer`), or use `DreamerV3.resume`, which needs a checkpoint"
            )
        if self._had_vec_normalize and self.get_vec_normalize_env() is None:
            warnings.warn("The model was trained with VecNormalize, but `env` is without it: use `VecNormalize.load`")

    # ---- files of SB3 ----

    def save(self, *args: Any, **kwargs: Any) -> None:
        """As SB3's; a file of a seeded model also has the states of the random generators."""
        self._saved_random_states = None
        if self.seed is not None:
            action_space = generator_state(self.action_space.np_random)
            self._saved_random_states = get_random_states(self.device) | {"action_space": action_space}
        self._had_vec_normalize = self.get_vec_normalize_env() is not None
        super().save(*args, **kwargs)

    def continue_random_streams(self) -> None:
        """After ``load``: draw what comes after the numbers that the saved model has drawn, not these numbers again."""
        if self._saved_random_states is None:
            return
        # SB3 has seeded model and environments as in the first run.
        rank = self._ranks.rank
        seed = int(np.random.SeedSequence([self.seed or 0, self.num_timesteps, rank]).generate_state(1)[0])
        if self._ranks.is_main:
            set_random_states(self._saved_random_states, self.device)
            self.action_space._np_random = generator_from(self._saved_random_states["action_space"])
        else:  # the file has the states of the main rank
            set_random_seed(seed)
            self.action_space.seed(seed)
        self._saved_random_states = None
        if self.env is not None:
            self.env.seed(seed)

    def save_replay_buffer(self, path: Any) -> None:
        """As SB3's; the file also has the number of steps, so that a model of another step is noticed."""
        self.replay_buffer.saved_at = self.num_timesteps
        super().save_replay_buffer(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        As SB3's. The first step collected afterwards is treated as the first of an episode. The model's ``buffer_size`` is
        kept: if the file has more rows, the newest of each environment are loaded. There is a warning if buffer and model were
        saved at different steps.

        :raises ValueError: if the buffer does not fit the model; the model then keeps its current buffer
        :raises ImportError: if the file was written with a newer numpy and the installed numpy cannot read it
        """
        with explain_newer_numpy():
            super().load_replay_buffer(path, truncate_last_traj)
        saved_at = self.replay_buffer.saved_at
        if saved_at is not None and self.num_timesteps and saved_at != self.num_timesteps:
            warnings.warn(f"The model has made {self.num_timesteps} steps, this replay buffer was saved after {saved_at}")

    def _excluded_save_params(self) -> list[str]:
        """A file of SB3 does not belong to a checkpoint. RL Zoo's ``learn`` of this run is not saved either."""
        return [
            *super()._excluded_save_params(),
            "_last_checkpoint",
            "_replay_chunks",
            "_pending_log",
            "save_if_workers_end",
            "steps_before_learn",
            "learn",
        ]


# ---- save ----


def save_checkpoint(model: "ResumableAlgorithm", path: pathlib.Path) -> pathlib.Path:
    """
    :param model: the model, between two rollouts
    :param path: folder of the checkpoints
    :return: the new checkpoint; if this run has saved one of this step already, that one
    :raises FileExistsError: if there is one of this step of another run
    :raises OSError: if the folder cannot be written to, or the disk is full. Older checkpoints are unchanged.
    """
    target = checkpoint_folder(path, model.num_timesteps)
    if model.last_checkpoint == target and target.exists():
        return target
    ranks = model._ranks
    if any(ranks.exchange(target.exists())):
        raise FileExistsError(f"{target} is a checkpoint of another run: choose another folder")
    chunks = model._replay_chunks
    if chunks is None or chunks.buffer is not model.replay_buffer:
        chunks = model._replay_chunks = ReplayChunks(model.replay_buffer, f"replay/{ranks.rank}")
    previous = model._last_checkpoint
    if previous is not None and previous.folder.parent != path:
        previous, chunks.written = None, None
    with unfinished_folder(ranks, target) as folder:
        writer = CheckpointWriter(folder, previous)
        parts = ranks.exchange((part_of_rank(model, writer, chunks), writer.entries))
        if ranks.is_main:
            writer.write_tensors(WEIGHTS, model.get_parameters())
            for _, entries in parts:
                writer.entries |= entries
            writer.close(dict(settings=stored_settings(model), ranks=[part for part, _ in parts]))
    ranks.exchange(None)  # it is complete
    chunks.mark_written()
    model._last_checkpoint = Checkpoint(target)
    return target


@contextmanager
def unfinished_folder(ranks: Ranks, target: pathlib.Path) -> Iterator[pathlib.Path]:
    """
    :param ranks: processes that write to the folder; the main one makes it, and gives it its name at the end
    :param target: name of the checkpoint
    :return: the folder to write to
    """
    if ranks.is_main:
        with atomic_folder(target) as folder:
            ranks.exchange(None)  # it exists
            yield folder
    else:
        ranks.exchange(None)
        yield target.with_name(target.name + UNFINISHED)


def part_of_rank(model: "ResumableAlgorithm", writer: CheckpointWriter, chunks: ReplayChunks) -> dict[str, Any]:
    """:return: everything that each rank has for itself; its rows are written to files"""
    return dict(
        run=run_state(model),
        random=get_random_states(model.device),
        action_space=generator_state(model.action_space.np_random),
        vec_normalize=get_statistics(model.get_vec_normalize_env()),
        # After an exception in a step, the environments must be reset.
        envs=None if model.env is None or model._last_obs is None else get_states(model.env),
        replay=chunks.write(writer),
    )


# ---- load ----


def load_content(model: "ResumableAlgorithm", checkpoint: Checkpoint, content: dict[str, Any]) -> None:
    """
    Continue the run of a checkpoint. If this fails, the model must not be used.

    :param model: a new model with the same settings and an environment
    :param checkpoint: the checkpoint
    :param content: its content
    :raises CheckpointError: if it is damaged
    :raises ValueError: if it does not fit the model or its environment
    """
    try:
        restore(model, checkpoint, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.folder} does not contain a run of DreamerV3: {error!r}") from error


def restore(model: "ResumableAlgorithm", checkpoint: Checkpoint, content: dict[str, Any]) -> None:
    """As :func:`load_content`; content of another kind is a KeyError, TypeError or AttributeError."""
    rank, parts = model._ranks.rank, content["ranks"]
    is_new = rank >= len(parts)  # there are more ranks than before
    part = parts[0 if is_new else rank]
    vec_normalize = model.get_vec_normalize_env()
    check_statistics(vec_normalize, part["vec_normalize"])
    read_rows(model, checkpoint, parts)
    weights = checkpoint.read_tensors(WEIGHTS, model.device)
    try:
        model.set_parameters(weights, device=model.device)
    except RuntimeError as error:
        raise ValueError(f"The weights of {checkpoint.folder} do not fit the model: {error}") from error
    restore_run(model, part["run"])
    restore_env(model, part if not is_new else part | {"envs": None})
    set_statistics(vec_normalize, part["vec_normalize"])  # after the environments, because a reset changes them
    if not is_new:
        set_random_states(part["random"], model.device)
        model.action_space._np_random = generator_from(part["action_space"])
    model._last_checkpoint = checkpoint


def read_rows(model: "ResumableAlgorithm", checkpoint: Checkpoint, parts: list[dict[str, Any]]) -> None:
    """Fill the replay buffer with the rows of this rank, and with older rows of ranks that do not exist any more."""
    ranks, buffer = model._ranks, model.replay_buffer
    chunks = model._replay_chunks = ReplayChunks(buffer, f"replay/{ranks.rank}")
    if ranks.rank >= len(parts):
        return
    read_chunks(checkpoint, parts[ranks.rank]["replay"], buffer, chunks.prefix)
    if buffer.buffer_size == parts[ranks.rank]["replay"]["buffer_size"]:
        chunks.mark_written()
    for other in range(ranks.rank + ranks.size, len(parts), ranks.size):
        older = empty_like(buffer)
        read_chunks(checkpoint, parts[other]["replay"], older, f"replay/{other}")
        put_before(buffer, older)
        chunks.written = None
