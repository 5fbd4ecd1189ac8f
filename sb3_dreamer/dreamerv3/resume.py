"""What a checkpoint of DreamerV3 contains: everything that the rest of a run depends on."""

import copy
import inspect
import pathlib
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.checkpoint import Checkpoint, CheckpointError, CheckpointWriter, checkpoint_folder, open_checkpoint
from sb3_dreamer.common.distributed.algorithm import DistributedOffPolicyAlgorithm
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.env_state import (
    check_statistics,
    generator_from,
    generator_state,
    get_states,
    get_statistics,
    set_states,
    set_statistics,
)
from sb3_dreamer.common.files import UNFINISHED, atomic_folder
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.plain_data import is_plain
from sb3_dreamer.common.replay.chunks import ReplayChunks, read_chunks
from sb3_dreamer.common.save_util import explain_newer_numpy
from sb3_dreamer.common.schedules import TrainRatio
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.common.workers import WorkerError

SelfResumable = TypeVar("SelfResumable", bound="ResumableAlgorithm")

WEIGHTS = "weights.pth"
# Counters and observations of a run. The attributes of the training ratio and of the metrics follow below.
OF_RUN = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_current_progress_remaining",
    "_n_updates",
    "_episode_num",
    "ep_info_buffer",
    "ep_success_buffer",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
)
OF_RATIO = ("owed", "is_open", "steps_per_update")
OF_METRICS = ("_names", "_sums", "_n_made", "_n_in_a_row", "count")
# Arguments of the constructor that belong to the process, not to the run, and those that are handled separately.
NOT_STORED = {"self", "env", "device", "verbose", "tensorboard_log", "_init_setup_model", "policy", "replay_buffer_class"}
STORED_AS = {"stats_window_size": "_stats_window_size"}


class ResumableAlgorithm(DistributedOffPolicyAlgorithm):
    """
    Saves and resumes runs. The functions below say what a checkpoint contains.

    :param args: as those of :class:`~sb3_dreamer.common.distributed.algorithm.DistributedOffPolicyAlgorithm`
    :param kwargs: the same, by name
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]]
    replay_buffer: SequenceReplayBuffer
    _last_state: PolicyState | None
    _train_ratio: TrainRatio
    _metrics: MetricAverager

    def __init__(self, *args: Any, **kwargs: Any):
        # The last checkpoint of this run, what it contains of the replay buffer, and values that were not logged yet.
        self._last_checkpoint: Checkpoint | None = None
        self._replay_chunks: ReplayChunks | None = None
        self._pending_log: dict[str, Any] = {}
        self._saved_random_states: dict[str, Any] | None = None
        self._had_vec_normalize = False
        self.save_if_workers_end: Callable[[], bool] = lambda: False
        super().__init__(*args, **kwargs)

    def learn(self: SelfResumable, *args: Any, **kwargs: Any) -> SelfResumable:
        """As SB3's; if Ctrl-C has also ended the processes of the environments, a checkpoint callback saves the run."""
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

    def load_checkpoint(self, path: str | pathlib.Path) -> None:
        """
        Continue the run of a checkpoint with this model, which has just been made with the same settings and has an
        environment. If this fails, the model must not be used. See :meth:`resume`.

        :param path: a checkpoint, or the folder with several, of which the newest is read
        :raises FileNotFoundError: if there is none
        :raises CheckpointError: if it is damaged; the message names an older one
        :raises ValueError: if it does not fit the model or its environment
        """
        load_checkpoint(self, pathlib.Path(path).resolve())

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

        :param path: a checkpoint, or the folder with several, of which the newest is read
        :param env: environment, wrapped as before
        :param device: where the model goes
        :param kwargs: arguments of the constructor, instead of those in the checkpoint. Functions and classes are not stored
            and must be passed again, also ``tensorboard_log``, ``verbose`` and the ``storage_folder`` of the replay buffer,
            which belong to the process.
        :return: the model
        :raises FileNotFoundError: if there is no checkpoint
        :raises CheckpointError: if it is damaged; the message names an older one
        :raises ValueError: if it does not fit the environment, or an argument is missing
        """
        checkpoint = open_checkpoint(pathlib.Path(path).resolve())
        settings = settings_from(checkpoint, checkpoint.content()["settings"], kwargs)
        model = cls(env=env, device=device, **settings)
        model.load_checkpoint(checkpoint.folder)
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
        self._saved_random_states = None if self.seed is None else random_states(self)
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
            restore_random_states(self, self._saved_random_states)
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
            "learn",
        ]


# ---- arguments of the constructor ----


def stored_settings(model: "ResumableAlgorithm") -> dict[str, Any]:
    """
    :return: arguments of the constructor. Those that are not plain data, such as functions and classes, are named in
        ``"missing"``.
    """
    names = [name for name in constructor_arguments(type(model)) if name not in NOT_STORED]
    unset = object()  # of a subclass that does not keep its argument
    values = {name: getattr(model, STORED_AS.get(name, name), unset) for name in names}
    if isinstance(model.train_freq, TrainFreq):  # SB3 has converted it
        values["train_freq"] = (model.train_freq.frequency, model.train_freq.unit.value)
    # A folder of another machine is no place to write to.
    buffer_kwargs = model.replay_buffer_kwargs.items()
    values["replay_buffer_kwargs"] = {name: value for name, value in buffer_kwargs if name != "storage_folder"}
    aliases = [name for name, kind in model.policy_aliases.items() if kind is model.policy_class]
    values["policy"] = aliases[-1] if aliases else unset  # the last one accepts all spaces
    if model.replay_buffer_class is not SequenceReplayBuffer:
        values["replay_buffer_class"] = unset
    missing = [name for name, value in values.items() if not is_plain(value)]
    return dict(values={name: value for name, value in values.items() if name not in missing}, missing=missing)


def constructor_arguments(cls: type) -> list[str]:
    """:return: names of the arguments of a class; subclasses may take those of their base by ``*args`` and ``**kwargs``"""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if base is ResumableAlgorithm:
            break
        parameters = inspect.signature(base).parameters.values()
        names |= {one.name: None for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    return list(names)


def settings_from(checkpoint: Checkpoint, stored: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    :param checkpoint: the checkpoint
    :param stored: from :func:`stored_settings`
    :param kwargs: arguments that replace those of the checkpoint
    :return: arguments of the constructor
    :raises ValueError: if an argument is neither in the checkpoint nor in ``kwargs``
    """
    missing = [name for name in stored["missing"] if name not in kwargs]
    if missing:
        raise ValueError(
            f"{checkpoint.folder} does not contain {', '.join(f'`{name}`' for name in missing)}, because functions and "
            f"classes are not stored. Pass the same as before: DreamerV3.resume(path, env, {missing[0]}=...)"
        )
    return {**stored["values"], **kwargs}


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
        random=random_states(model),
        vec_normalize=get_statistics(model.get_vec_normalize_env()),
        # After an exception in a step, the environments must be reset.
        envs=None if model.env is None or model._last_obs is None else get_states(model.env),
        replay=chunks.write(writer),
    )


def run_state(model: "ResumableAlgorithm") -> dict[str, Any]:
    """:return: counters, observations and the recurrent state of the run"""
    state: dict[str, Any] = {name: getattr(model, name) for name in OF_RUN}
    state["training_ratio"] = {name: getattr(model._train_ratio, name) for name in OF_RATIO}
    state["metrics"] = {name: getattr(model._metrics, name) for name in OF_METRICS}
    state["last_state"] = None if model._last_state is None else tuple(model._last_state)
    if getattr(model, "_logger", None) is not None:  # SB3 sets it in `learn`
        names = "name_to_value", "name_to_count"
        state["logger"] = {name: plain_entries(getattr(model.logger, name)) for name in names}
    if model.ep_info_buffer is not None:
        episodes = (plain_entries(info) for info in model.ep_info_buffer)
        state["ep_info_buffer"] = deque(episodes, maxlen=model.ep_info_buffer.maxlen)
    return state


def plain_entries(values: dict[str, Any]) -> dict[str, Any]:
    """:return: the entries that a checkpoint can hold; figures and videos for the logger are left out"""
    return {name: value for name, value in values.items() if is_plain(value)}


def random_states(model: "ResumableAlgorithm") -> dict[str, Any]:
    """:return: states of all random generators of the process, and of the action space"""
    version, internal, gauss = random.getstate()
    return dict(
        python=(version, np.array(internal, dtype=np.uint32), gauss),
        numpy=tuple(np.random.get_state()),
        torch=th.get_rng_state(),
        cuda=th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
        action_space=generator_state(model.action_space.np_random),
    )


# ---- load ----


def load_checkpoint(model: "ResumableAlgorithm", path: str | pathlib.Path) -> None:
    """
    Continue the run of a checkpoint. If this fails, the model must not be used.

    :param model: a new model with the same settings and an environment
    :param path: a checkpoint, or the folder with several, of which the newest is read
    :raises FileNotFoundError: if there is none
    :raises CheckpointError: if it is damaged
    :raises ValueError: if it does not fit the model or its environment
    """
    checkpoint = open_checkpoint(path)
    content = checkpoint.content()
    try:
        restore(model, checkpoint, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.folder} does not contain a run of DreamerV3: {error!r}") from error


def restore(model: "ResumableAlgorithm", checkpoint: Checkpoint, content: dict[str, Any]) -> None:
    """
    :param model: model to be changed
    :param checkpoint: the checkpoint
    :param content: its content
    :raises ValueError: as :func:`load_checkpoint`
    """
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
        restore_random_states(model, part["random"])
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
        theirs = copy.copy(buffer)
        theirs.forget()
        read_chunks(checkpoint, parts[other]["replay"], theirs, f"replay/{other}")
        buffer.put_before(theirs)
        chunks.written = None


def restore_run(model: "ResumableAlgorithm", run: dict[str, Any]) -> None:
    """:param run: from :func:`run_state`"""
    for name in OF_RUN:
        setattr(model, name, run[name])
    vars(model._train_ratio).update(run["training_ratio"])
    metrics = run["metrics"].items()
    vars(model._metrics).update(
        {name: value.to(model.device) if isinstance(value, th.Tensor) else value for name, value in metrics}
    )
    model._pending_log = run.get("logger", {})


def restore_env(model: "ResumableAlgorithm", part: dict[str, Any]) -> None:
    """Continue in the middle of the episodes if the environments can, otherwise begin new ones."""
    env, last_state = model.env, part["run"]["last_state"]
    assert isinstance(env, VecEnv)
    if part["envs"] is not None and set_states(env, part["envs"]):
        model._last_state = None if last_state is None else PolicyState(*(part.to(model.device) for part in last_state))
        return
    model._last_obs, model._last_state = None, None  # SB3 then resets the environments, and the next row is a first row
    if model._ranks.is_main:
        warnings.warn(
            "The state of the environments was not saved (they have no `get_state` and `set_state`, or were interrupted), so "
            "they begin a new episode. Everything else continues where it was saved"
        )


def restore_random_states(model: "ResumableAlgorithm", states: dict[str, Any]) -> None:
    """:param states: from :func:`random_states`"""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(int(value) for value in internal), gauss))
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if states["cuda"] and th.cuda.is_available() and len(states["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all(states["cuda"])
    model.action_space._np_random = generator_from(states["action_space"])
