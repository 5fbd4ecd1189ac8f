"""Rows of the sequence replay buffer: arrays that are allocated lazily, appended to, pickled up to the last row, mirrored."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_dreamer.common.preprocessing import SINGLE_KEY, as_array_dict
from sb3_dreamer.common.replay.device import DeviceMirror
from sb3_dreamer.common.replay.disk import check_folder, check_space, zeros_on_disk
from sb3_dreamer.common.type_aliases import NumpyObs

try:
    # As SB3 does: check the memory when possible
    import psutil
except ImportError:  # pragma: no cover
    psutil = None

STORAGES = ("memory", "disk", "device")
OLD_NAMES = {"host": "memory"}  # of storages
# Rows of an array that are copied at once where it is copied in parts, so that an array on disk need not fit in memory.
ROWS_PER_COPY = 4096
# All arrays except observations; their shapes are (rows, n_envs, ...).
ROW_ARRAYS = ("actions", "rewards", "is_first", "dones", "timeouts", "deter", "stoch", "has_latent")


def storage_name(name: str) -> str:
    """
    :param name: one of ``STORAGES``, or the old name ``"host"`` of ``"memory"``
    :return: one of ``STORAGES``
    :raises ValueError: for any other name
    """
    name = OLD_NAMES.get(name, name)
    if name not in STORAGES:
        raise ValueError(f"`storage` must be one of {STORAGES}, got {name!r}")
    return name


class RowStorage(ReplayBuffer):
    """
    Arrays of :class:`~sb3_dreamer.common.buffers.SequenceReplayBuffer`, which documents their meaning and sets the attributes
    that are used here.
    """

    latent_shape: tuple[int, int, int] | None
    replay_context: bool
    storage: str = "memory"  # missing in buffers pickled by older versions, as is the folder
    storage_folder: str | Path | None = None
    is_allocated: bool
    counts: np.ndarray
    _envs: np.ndarray
    _all_false: np.ndarray
    _newest: np.ndarray | None
    _device_mirror: DeviceMirror | None = None
    has_latent: np.ndarray
    is_first: np.ndarray
    deter: np.ndarray
    stoch: np.ndarray

    def set_storage(self, storage: str, storage_folder: str | Path | None = None) -> None:
        """
        Choose where the rows are kept from now on. Rows that are stored already are copied there.

        :param storage: as the argument of the constructor
        :param storage_folder: as the argument of the constructor
        :raises ValueError: if ``storage`` is unknown
        :raises OSError: if rows cannot be copied to the folder; the buffer is then unchanged
        """
        before = self.storage, self.storage_folder
        self.storage, self.storage_folder = storage_name(storage), storage_folder
        if self.is_allocated and "disk" in (before[0], self.storage) and before != (self.storage, storage_folder):
            try:
                self._move_rows(self.buffer_size, np.zeros_like(self.counts))
            except OSError:
                self.storage, self.storage_folder = before
                raise

    def _zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """:return: a new array, in memory or on disk"""
        return zeros_on_disk(shape, dtype, self.storage_folder) if self.storage == "disk" else np.zeros(shape, dtype)

    def _make_arrays(self, rows: int) -> None:
        """
        (Re)create all arrays with zeros. In memory, the system only commits pages to which rows are written; on disk the
        space is reserved at once.

        :raises OSError: if the disk has not enough free space
        """
        lead = (rows, self.n_envs)
        self.observations = self._make_observations(lead)  # type: ignore[assignment]
        # Actions of a Box are stored scaled to [-1, 1], regardless of the dtype of the Box.
        is_box = isinstance(self.action_space, spaces.Box)
        self.actions = self._zeros((*lead, self.action_dim), dtype=np.float32 if is_box else self.action_space.dtype)
        self.rewards = self._zeros(lead, dtype=np.float32)
        self.is_first, self.dones, self.timeouts, self.has_latent = (self._zeros(lead, dtype=bool) for _ in range(4))
        # Latents need most of the memory, so deter is stored in 16 bits and stoch as class indices.
        deter, stoch, classes = self.latent_shape if self.latent_shape and self.replay_context else (0, 0, 1)
        self.deter = self._zeros((*lead, deter), dtype=np.float16)
        self.stoch = self._zeros((*lead, stoch), dtype=np.uint8 if classes <= 256 else np.uint16)

    def _make_observations(self, lead: tuple[int, ...]) -> NumpyObs:
        if isinstance(self.observation_space, spaces.Dict):
            shapes: dict[str, tuple[int, ...]] = self.obs_shape  # type: ignore[assignment]
            return {
                key: self._zeros((*lead, *shapes[key]), dtype=self._maybe_cast_dtype(space.dtype))
                for key, space in self.observation_space.spaces.items()
            }
        return self._zeros((*lead, *self.obs_shape), dtype=self._maybe_cast_dtype(self.observation_space.dtype))

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name) for name in ROW_ARRAYS}
        return arrays | {f"obs.{key}": array for key, array in as_array_dict(self.observations).items()}

    def _move_rows(self, old_size: int, gone: np.ndarray) -> None:
        """
        Resize the arrays and keep the newest rows of each stream.

        :param old_size: previous number of rows of each stream
        :param gone: number of rows by which the counts of each stream have decreased (n_envs,)
        """
        n_rows = int(np.minimum(self.counts, min(old_size, self.buffer_size)).max())
        steps = self.counts - 1 - np.arange(n_rows)[:, None]  # (n_rows, n_envs), newest first
        row, envs = np.nonzero(steps >= 0)
        steps = steps[row, envs]
        old_rows = self._arrays()
        self._make_full_arrays()
        for name, array in self._arrays().items():
            for start in range(0, len(steps), ROWS_PER_COPY):
                step, env = steps[start : start + ROWS_PER_COPY], envs[start : start + ROWS_PER_COPY]
                array[(step - gone[env]) % self.buffer_size, env] = old_rows[name][step % old_size, env]

    @property
    def pos(self) -> int:
        """Largest write position of all streams. Derived from ``counts``, as ``full`` is."""
        return int((self.counts % self.buffer_size).max())

    @pos.setter
    def pos(self, value: int) -> None:
        """Ignored: SB3's constructor and ``reset`` set it to 0."""

    @property
    def full(self) -> bool:
        """Whether every stream is full, so that its next row overwrites its oldest one."""
        return bool((self.counts >= self.buffer_size).all())

    @full.setter
    def full(self, value: bool) -> None:
        """Ignored: SB3's constructor and ``reset`` set it to False."""

    def _differs_from_last_row(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        """:return: where an observation differs from the last row of its stream (n_envs,); False where the stream is empty"""
        if not self.is_allocated:
            return self._all_false
        differs = self._all_false
        rows = (self.counts - 1) % self.buffer_size if self._newest is None else self._newest
        at = self._index(rows, self._envs)
        for key, array in as_array_dict(self.observations).items():
            last = array[at]  # (n_envs, ...)
            values = observations[key].reshape(last.shape)
            if values.dtype != last.dtype and last.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    values = values.astype(last.dtype)  # round to the dtype of the row before comparing
            is_other = values != last
            if np.logical_or.reduce(is_other, axis=None):
                differs = differs | is_other.reshape(self.n_envs, -1).any(axis=1)
        return differs if differs is self._all_false else differs & (self.counts > 0)

    def _truncate_before(self, envs: np.ndarray) -> None:
        """If the last row of a stream does not end its episode, mark it as truncated, because a new episode begins."""
        envs = envs[self.counts[envs] > 0]
        rows = (self.counts[envs] - 1) % self.buffer_size
        abandoned = ~self.dones[rows, envs]
        self.dones[rows[abandoned], envs[abandoned]] = True
        self.timeouts[rows[abandoned], envs[abandoned]] = True

    def _index(self, rows: np.ndarray, envs: np.ndarray) -> Any:
        """:return: index of these rows in an array (rows, n_envs, ...): two arrays, or with one environment an int (faster)"""
        return int(rows[0]) if self.n_envs == 1 else (rows, envs)

    def _append(
        self,
        envs: np.ndarray,
        observations: dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        is_first: np.ndarray,
        dones: np.ndarray,
        timeouts: np.ndarray,
    ) -> None:
        """Append one row to each stream of ``envs``; all other arguments have one entry for every environment."""
        new = slice(None) if envs is self._envs else envs  # a slice avoids copies if all get a row
        rows = self.counts[new] % self.buffer_size
        at = self._index(rows, envs)
        for key, array in as_array_dict(self.observations).items():
            array[at] = observations[key].reshape(self.n_envs, *array.shape[2:])[new]
        if self._device_mirror is not None:  # otherwise it is created from all rows at its first use
            self._device_mirror.write(rows, envs, as_array_dict(self.observations))
        self.actions[at] = actions.reshape(self.n_envs, self.action_dim)[new]
        self.rewards[at] = rewards[new]
        self.is_first[at] = is_first[new]
        self.dones[at] = dones[new]
        self.timeouts[at] = timeouts[new]
        self.has_latent[at] = False
        # Last, so that an interrupted write does not count as a new row.
        self.counts[new] += 1
        self._newest = rows if envs is self._envs else None

    @property
    def nbytes(self) -> int:
        """Memory of the full buffer in bytes, observations and latents included."""
        bytes_per_row = sum(int(np.prod(array.shape[1:])) * array.itemsize for array in self._arrays().values())
        return bytes_per_row * self.buffer_size

    def _make_full_arrays(self) -> None:
        """
        (Re)create all arrays with zeros for ``buffer_size`` rows of each stream.

        :raises OSError: if they cannot be created on disk; the arrays are then those of before
        """
        before = dict(self.__dict__)
        try:
            if self.storage == "disk":
                check_space(self.nbytes, check_folder(self.storage_folder))
            self._make_arrays(self.buffer_size)
        except OSError:
            self.__dict__.update(before)
            raise

    def _allocate(self) -> None:
        self._make_arrays(0)  # the latent shape may have been set since
        available = psutil.virtual_memory().available if psutil is not None and self.storage != "disk" else np.inf
        if self.nbytes > available:
            warnings.warn(
                "This system does not have apparently enough memory to store the complete replay buffer "
                f"{self.nbytes / 1e9:.2f}GB > {available / 1e9:.2f}GB: reduce `buffer_size`, or keep the buffer on disk by "
                'replay_buffer_kwargs=dict(storage="disk")'
            )
        self._make_full_arrays()
        self.is_allocated = True
        self._device_mirror = None

    def _mirror(self) -> DeviceMirror:
        """:return: copy of the observations on the device, made at the first call"""
        if self._device_mirror is None or self._device_mirror.device != self.device:
            self._device_mirror = DeviceMirror(as_array_dict(self.observations), self.device)
        return self._device_mirror

    def check_fits(
        self,
        *,
        n_envs: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        latent_shape: tuple[int, int, int],
        replay_context: bool,
    ) -> None:
        """
        Check that a buffer loaded from a file fits a model. All arguments are those of the model.

        :raises ValueError: if one of them differs from that of the buffer
        """
        for name, wanted, meaning in (
            ("n_envs", n_envs, "rows of another number of environments"),
            ("observation_space", observation_space, "observations of another space"),
            ("action_space", action_space, "actions of another space"),
            ("latent_shape", latent_shape, "latents (deter, stoch, classes) of another `model_size`"),
            ("replay_context", replay_context, "windows of another `replay_context`"),
        ):
            if getattr(self, name) != wanted:
                raise ValueError(f"The replay buffer holds {meaning}: {getattr(self, name)}, the model has {wanted}")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle only the rows in use. They are not copied, because rows on disk may not fit in memory."""
        state = self.__dict__ | {"_device_mirror": None}
        used = min(int(self.counts.max()), self.buffer_size) if self.is_allocated else 0
        state |= {name: getattr(self, name)[:used] for name in ROW_ARRAYS}
        cut = {key: array[:used] for key, array in as_array_dict(self.observations).items()}
        state["observations"] = cut if isinstance(self.observations, dict) else cut[SINGLE_KEY]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.storage = storage_name(self.storage)
        if self.is_allocated:
            stored = self._arrays()
            self._use_possible_folder()
            self._make_full_arrays()
            for name, array in self._arrays().items():
                array[: len(stored[name])] = stored[name]

    def _use_possible_folder(self) -> None:
        """If the folder of a buffer from another machine cannot be used, use the one for temporary files, with a warning."""
        if self.storage == "disk" and self.storage_folder is not None:
            try:
                check_folder(self.storage_folder)
            except OSError as error:
                warnings.warn(f"{error}: the replay buffer is put into the folder for temporary files")
                self.storage_folder = None
