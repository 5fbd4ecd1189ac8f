"""Sequence replay: one row per observation, one stream of rows per environment; latents are stored with the rows."""

import warnings
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.functional import one_hot, tensors_of
from sb3_dreamer.common.images import choose_keys
from sb3_dreamer.common.preprocessing import SINGLE_KEY, as_array_dict, as_space_dict, steps_of
from sb3_dreamer.common.replay.device import DeviceMirror, side_stream, to_device
from sb3_dreamer.common.replay.storage import RowStorage
from sb3_dreamer.common.replay.write_back import LatentWriteBack
from sb3_dreamer.common.type_aliases import LatentState, NumpyObs, SequenceBatch, SequenceIndices, TensorObs
from sb3_dreamer.common.value_checks import ObservationCheck, RangeCheck, action_check, reward_check, warn_if_codes

# After this many rows, images are checked once: a warning is given if their values look like object ids (as in MiniGrid).
ROWS_BEFORE_IMAGE_CHECK = 1000
# Attributes that are not pickled. `_make_unsaved` creates them again.
NOT_IN_FILES = (
    "n_new_windows",
    "_envs",
    "_all_false",
    "_check_obs",
    "_check_action",
    "_check_reward",
    "_check_range",
    "_steps_until_image_check",
    "_write_back",
)


def nth_windows(draws: np.ndarray, n_windows: np.ndarray, oldest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    All windows of all streams are numbered, one stream after the other.

    :param draws: numbers of windows (B,)
    :param n_windows: number of windows of each stream (n_envs,)
    :param oldest: number of the oldest row of each stream (n_envs,)
    :return: stream and first row of each window (B,)
    """
    ends = n_windows.cumsum()
    envs = np.searchsorted(ends, draws, side="right")
    return envs, oldest[envs] + draws - (ends - n_windows)[envs]


class SequenceReplayBuffer(RowStorage):
    """
    Replay of sequences. A row is an observation together with the action that led to it, and the reward and the flags that
    came with it. ``add`` appends the row of ``next_obs``; where an episode begins, it first appends the row of ``obs``.

    .. code-block:: text

        rows     | x_0  first | x_1      | x_2      | x_3  last | x_0  first | ...     an episode of n steps has n + 1 rows
        actions  | 0          | a_0      | a_1      | a_2       | 0          |         the action that led here
        rewards  | 0          | r_1      | r_2      | r_3       | 0          |
        dones    | 0          | 0        | 0        | 1         | 0          |         timeouts is 1 here, too, if truncated

    Each environment has its own stream of rows. Final observations of episodes are rows, too. Each row has a number, counted
    from 0 in its stream (``step`` in the code). It is stored at index ``step % self.buffer_size`` of the arrays.
    The attribute ``self.buffer_size`` counts the rows per environment, the argument those of all environments.

    A sampled window has T rows. With ``replay_context`` it also needs the row before them, the context row, whose latent is
    the state that the window starts from. Memory is allocated at the first ``add``.

    :param buffer_size: rows over all environments
    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these
    :param action_space: action space; a Box is stored scaled to [-1, 1]
    :param device: where samples go
    :param n_envs: number of environments, each gets ``buffer_size // n_envs`` rows
    :param optimize_memory_usage: must be False: every observation is stored only once anyway
    :param handle_timeout_termination: distinguish truncations from terminations
    :param batch_length: T, rows of a sampled window
    :param latent_shape: (D, S, K) of the latents stored with each row; may be set until the first ``add``
    :param replay_context: start each window from the latent of its context row; if False, from zeros as in a new episode
    :param online_queue: put each newly completed window (these do not overlap) into a batch first; the rest of the batch is
        drawn uniformly
    :param storage: where the rows are kept: ``"memory"``; ``"disk"``: in files, which may be larger than the memory;
        ``"device"``: in memory, with a copy of all observations on the device, so that they are not copied from the host for
        each batch (it has no effect with VecNormalize). The batches are the same.
    :param storage_folder: with ``storage="disk"``, folder of the files, best on a local SSD; None: the system's folder for
        temporary files. The files have no names, and their space is freed when the buffer is garbage-collected or the process
        ends; ``save_replay_buffer`` saves the rows.
    :raises ValueError: if ``optimize_memory_usage`` is set or ``storage`` is unknown
    """

    random_states: dict[str, Any] | None = None  # of the random generators of the rank that saves the buffer
    n_moves = 0  # how often all rows were forgotten, or got other positions
    n_new_windows = 0  # in the last batch: those of the online queue, which have not been sampled before
    saved_at: int | None = None  # environment steps of the model that saved the buffer
    # Keys that are images, whose values must be within the bounds of their space; None: images are recognised by their spaces.
    image_keys: list[str] | None = None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        batch_length: int = 64,
        latent_shape: tuple[int, int, int] | None = None,
        replay_context: bool = True,
        online_queue: bool = True,
        storage: str = "memory",
        storage_folder: str | Path | None = None,
    ):
        if optimize_memory_usage:
            raise ValueError("`optimize_memory_usage` must be False: this buffer stores every observation only once anyway")
        # Not ReplayBuffer's constructor, which allocates at once and keeps every observation twice.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.batch_length = batch_length
        self.latent_shape = latent_shape
        self.replay_context = replay_context
        self.online_queue = online_queue
        self.is_allocated = False
        self.set_storage(storage, storage_folder)
        self._device_mirror: DeviceMirror | None = None
        self._make_unsaved()
        self._make_arrays(0)
        self._clear_streams()

    # ---- checks ----

    def _make_unsaved(self) -> None:
        """Create what is not saved, because it follows from the spaces or belongs to a device."""
        self._envs, self._all_false = np.arange(self.n_envs), np.zeros(self.n_envs, dtype=bool)
        self._check_obs = ObservationCheck(self.observation_space, self.image_keys)
        self._check_action, self._check_reward = action_check(self.action_space), reward_check()
        self._check_range = RangeCheck("reward")
        self._steps_until_image_check = max(1, min(ROWS_BEFORE_IMAGE_CHECK // self.n_envs, self.buffer_size))
        self._write_back = LatentWriteBack(self)

    def __getstate__(self) -> dict[str, Any]:
        self._write_back.flush()
        return {name: value for name, value in super().__getstate__().items() if name not in NOT_IN_FILES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_outcomes": np.array([np.inf, -np.inf, 0.0]), **state, "_newest": None})
        self._make_unsaved()
        self.note_stored_outcomes()  # files of older versions do not hold them
        if self.counts.sum() >= ROWS_BEFORE_IMAGE_CHECK:
            self._steps_until_image_check = 0  # images were checked before; the counter never reaches 0 again

    def _check_for_codes(self) -> None:
        image_keys = choose_keys(self.observation_space).layouts if self.image_keys is None else self.image_keys
        for key in image_keys:
            rows = as_array_dict(self.observations)[key][: self.size()]
            warn_if_codes(key, as_space_dict(self.observation_space)[key], rows, self.n_envs)  # type: ignore[arg-type]

    # ---- memory ----

    def _clear_streams(self) -> None:
        self.counts = np.zeros(self.n_envs, dtype=np.int64)  # number of the next row of each stream
        self._opens_episode = np.ones(self.n_envs, dtype=bool)
        # Position of the newest row of each stream (n_envs,); None: to be computed from `counts`.
        self._newest: np.ndarray | None = None
        self._queue = self._new_queue()
        # Lowest and highest reward so far, and whether an episode has terminated (1.0).
        self._outcomes = np.array([np.inf, -np.inf, 0.0])
        self.n_moves += 1
        self._write_back.pending.clear()

    def _new_queue(self, windows: Iterable[tuple[int, int]] = ()) -> deque[tuple[int, int]]:
        """:return: queue of new windows (environment, number of the first row), no more than fit into the buffer"""
        return deque(windows, maxlen=max(1, self.n_envs * self.buffer_size // self.window_length))

    # ---- writing ----

    @property
    def filled(self) -> np.ndarray:
        """Number of rows that are stored now in each stream (n_envs,)."""
        return np.minimum(self.counts, self.buffer_size)

    @property
    def window_length(self) -> int:
        """Rows that a window needs: T, and the context row with ``replay_context``."""
        return self.batch_length + int(self.replay_context)

    def set_image_keys(self, image_keys: list[str]) -> None:
        """
        :param image_keys: keys that the model treats as images; until this call, images are recognised by their spaces
        """
        self.image_keys = image_keys
        self._check_obs = ObservationCheck(self.observation_space, image_keys)

    def set_window(self, batch_length: int) -> None:
        """
        :param batch_length: T of the windows from now on; queued windows of another length are dropped
        """
        if batch_length != self.batch_length:
            self.batch_length = batch_length
            self._queue.clear()

    def resize(self, buffer_size: int) -> None:
        """
        Change the size and keep the newest rows of each stream.

        :param buffer_size: rows per environment from now on
        :raises OSError: if the disk has not enough free space for a second buffer next to this one; nothing has changed then
        """
        if buffer_size == self.buffer_size:
            return
        self._write_back.flush()
        self.n_moves += 1
        old_size, self.buffer_size = self.buffer_size, buffer_size
        if self.is_allocated:
            # In a larger buffer `filled` would include rows that are overwritten already: subtract them from `counts`.
            gone = np.maximum(self.counts - old_size, 0) * (buffer_size > old_size)  # (n_envs,)
            try:
                self._move_rows(old_size, gone)
            except OSError:
                self.buffer_size = old_size
                raise
            self.counts -= gone
            self._queue = deque((env, step - int(gone[env])) for env, step in self._queue)
        self._device_mirror = None
        self._queue, self._newest = self._new_queue(self._queue), None

    def size(self) -> int:
        """:return: rows in the shortest stream"""
        return int(self.filled.min())

    def reset(self) -> None:
        """Forget all rows; the memory stays allocated."""
        super().reset()
        self.has_latent[:] = False
        self._clear_streams()

    def mark_starts(self, starts: np.ndarray) -> None:
        """
        Call before ``add`` if its ``obs`` begins an episode. After a ``done``, and where ``obs`` differs from the last row,
        ``add`` detects this itself.

        :param starts: where an episode begins (n_envs,)
        """
        self._opens_episode |= np.asarray(starts, dtype=bool)

    def add(
        self,
        obs: NumpyObs,
        next_obs: NumpyObs,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]] | dict[str, Any],
    ) -> None:
        """
        Append one step of all environments. With one environment the first axis may be missing.

        Normally ``obs`` equals the last stored row, so only the row of ``next_obs`` is appended. If an episode begins (after a
        ``done``, after :meth:`mark_starts`, or because ``obs`` differs from the last row), a row of ``obs`` with zero action
        and zero reward is appended first, and the previous episode, if unfinished, is marked as truncated.

        :param obs: observation from which the action was chosen (n_envs, ...)
        :param next_obs: (n_envs, ...) true next observation, the final one where an episode ended
        :param action: (n_envs, ...) index, or value scaled to [-1, 1]
        :param reward: (n_envs,)
        :param done: (n_envs,) terminated or truncated
        :param infos: ``TimeLimit.truncated`` marks truncations
        :raises ValueError: if a shape or a value is not allowed; the message names the first one, and nothing is stored
        :raises OSError: at the first call, if the disk has not enough free space or ``storage_folder`` is not writable
        """
        n = self.n_envs
        obs_rows, next_rows = self._check_obs.rows(obs, n), self._check_obs(next_obs, n)
        flat = np.asarray(action).reshape(n, -1) if np.size(action) == n * self.action_dim else action
        actions, rewards = self._check_action(flat, n), self._check_reward(reward, n)
        is_last, is_cut = np.asarray(done, dtype=bool).reshape(n), self._truncated(infos)
        opening = np.flatnonzero(self._opens_episode | self._differs_from_last_row(obs_rows))
        if len(opening):  # in all other environments `obs` is the last row, which was checked when it was stored
            self._check_obs(obs_rows, n)
        if not self.is_allocated:
            self._allocate()
        if len(opening):
            self._truncate_before(opening)
            zeros, all_false = np.zeros((n, self.action_dim)), self._all_false
            self._append(opening, obs_rows, zeros, np.zeros(n), ~all_false, all_false, all_false)
            self._queue_windows(opening)
        self._append(self._envs, next_rows, actions, rewards, self._all_false, is_last, is_last & is_cut)
        self._queue_windows(self._envs)
        self._note_outcomes(rewards, is_last & ~is_cut)
        self._opens_episode = is_last.copy()
        self._steps_until_image_check -= 1
        if self._steps_until_image_check == 0:
            self._check_for_codes()

    def _note_outcomes(self, rewards: np.ndarray, is_terminal: np.ndarray) -> None:
        low, high, has_terminated = self._outcomes
        lowest, highest = rewards.min(initial=np.inf), rewards.max(initial=-np.inf)
        self._outcomes[:] = min(low, lowest), max(high, highest), has_terminated or is_terminal.any()

    def note_stored_outcomes(self) -> None:
        """Take note of the rewards and ends of all stored rows, see :attr:`returns_differ`."""
        n = self.filled.max(initial=0)
        is_stored = np.arange(n)[:, None] < self.filled  # (n, n_envs)
        has_reward = is_stored & ~self.is_first[:n]  # the first row of an episode has none
        self._note_outcomes(self.rewards[:n][has_reward], (self.dones[:n] & ~self.timeouts[:n])[is_stored])

    def _queue_windows(self, envs: np.ndarray) -> None:
        """:param envs: streams that have just got a row, which may complete a new window"""
        if self.online_queue:
            for env in envs[self.counts[envs] % self.window_length == 0]:
                self._queue.append((int(env), int(self.counts[env]) - self.window_length))

    def extend(self, *args: Any, **kwargs: Any) -> None:
        """
        Append several steps.

        :param args: as those of :meth:`add`, with an additional first axis (n_steps, n_envs, ...)
        :param kwargs: the same, by name
        """
        names = list(kwargs)
        for row in zip(*(steps_of(argument) for argument in (*args, *kwargs.values())), strict=True):
            self.add(*row[: len(args)], **dict(zip(names, row[len(args) :], strict=True)))

    def _truncated(self, infos: list[dict[str, Any]] | dict[str, Any]) -> np.ndarray:
        """:return: where the episode was truncated (n_envs,)"""
        if not self.handle_timeout_termination:
            return self._all_false
        per_env = [infos] if isinstance(infos, dict) else infos
        if len(per_env) != self.n_envs:
            raise ValueError(f"`infos` must hold one dict per environment, {self.n_envs} in all, got {len(per_env)}")
        return np.array([bool(info.get("TimeLimit.truncated", False)) for info in per_env])

    # ---- latents ----

    @property
    def acting_indices(self) -> SequenceIndices:
        """
        In each stream, the row before the newest one: the last stored action was chosen from its observation. Steps
        (n_envs, 1), envs (n_envs,).
        """
        return SequenceIndices(self.counts[:, None] - 2, self._envs)

    def update_latents(self, indices: SequenceIndices, latents: LatentState) -> None:
        """
        Write latents to their rows immediately, as after each step of acting.

        :param indices: steps (B, T) and envs (B,)
        :param latents: deter (B, T, D), stoch one-hot (B, T, S, K)
        """
        if self.replay_context:
            deter, stoch = latents.deter.detach().to(th.float16), latents.stoch.detach().argmax(-1)
            self.write_latents(indices, deter.cpu().numpy(), stoch.cpu().numpy())

    def refresh_latents(self, indices: SequenceIndices, posterior: LatentState, is_valid: th.Tensor | None = None) -> None:
        """
        Write the posterior of an update to its rows. The copy from a CUDA device is asynchronous: rows are written no later
        than when the second batch after this update is sampled, and always before the buffer is saved.

        :param indices: steps (B, T) and envs (B,)
        :param posterior: deter (B, T, D), stoch one-hot (B, T, S, K)
        :param is_valid: whether to write it, a bool on the device (an update that was skipped has no valid posterior); None:
            write it
        """
        if self.replay_context and posterior.deter.is_cuda:
            self._write_back.enqueue(indices, posterior, is_valid)
        elif is_valid is None or is_valid:
            self.update_latents(indices, posterior)

    def write_latents(self, indices: SequenceIndices, deter: np.ndarray, stoch: np.ndarray) -> None:
        """
        Write latents in host memory to their rows. Rows that were overwritten in the meantime are skipped. If a row occurs
        more than once (overlapping windows), its last latent is kept.

        :param indices: steps (B, T) and envs (B,)
        :param deter: (B, T, D) in float16
        :param stoch: class indices (B, T, S)
        """
        envs = np.broadcast_to(indices.envs[:, None], indices.steps.shape)
        alive = indices.steps >= np.maximum(self.counts - self.buffer_size, 0)[envs]
        where = indices.steps[alive] % self.buffer_size, envs[alive]
        self.deter[where] = deter[alive]
        self.stoch[where] = stoch[alive]
        self.has_latent[where] = True

    def _initial_latents(self, steps: np.ndarray, envs: np.ndarray) -> LatentState:
        """
        :param steps: numbers of the context rows (B,)
        :param envs: (B,)
        :return: state that each window starts from, deter (B, D), stoch (B, S, K)
        """
        assert self.latent_shape is not None, "`latent_shape` must be set before the first `add`"
        deter_dim, groups, classes = self.latent_shape
        if not self.replay_context:
            zeros = th.zeros(len(envs), deter_dim, device=self.device)
            return LatentState(zeros, zeros.new_zeros(len(envs), groups, classes))
        rows = steps % self.buffer_size
        # A row without a stored latent gives zeros, also for stoch, where any class index would become a valid one-hot.
        known = self._to_device(self.has_latent[rows, envs]).float()  # (B,)
        deter = self._to_device(self.deter[rows, envs]).float() * known[:, None]  # (B, D)
        stoch = one_hot(self._to_device(self.stoch[rows, envs]), classes)  # (B, S, K)
        return LatentState(deter, stoch * known[:, None, None])

    # ---- reading ----

    @property
    def n_windows(self) -> np.ndarray:
        """Number of windows that can be drawn from each stream, overlapping ones included (n_envs,)."""
        return np.maximum(self.filled - self.window_length + 1, 0)

    @property
    def returns_differ(self) -> bool:
        """
        Whether the return depends on what happens: two rewards have differed, or an episode has terminated and all rewards are
        equal and not 0. Rows that have been overwritten count, too.
        """
        low, high, has_terminated = self._outcomes
        return bool(low < high or (low == high != 0.0 and has_terminated))

    def check_range(self, env: VecNormalize | None = None) -> None:
        """
        Warn once if rewards lie outside of the range that a two-hot head can represent.

        :param env: normalises the rewards, which are stored unnormalised
        """
        ends = np.array([self.rewards.min(initial=0.0), self.rewards.max(initial=0.0)], dtype=np.float32)
        self._check_range(self._normalize_reward(ends, env))

    def warn_if_small(self) -> bool:
        """
        Warn if the buffer is too small for a window, so that no update can be made.

        :return: whether it is
        """
        is_small = self.buffer_size < self.window_length
        if is_small:
            warnings.warn(
                f"`buffer_size` gives each of {self.n_envs} environments {self.buffer_size} rows, but a window needs "
                f"{self.window_length} (`batch_length`, and with `replay_context` the row before): no update will be made. "
                "Increase `buffer_size` or decrease `batch_length`"
            )
        return is_small

    def can_sample(self) -> bool:
        """:return: whether there is at least one window"""
        return bool(self.n_windows.any())

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceBatch:  # type: ignore[override]
        """
        :param batch_size: B
        :param env: normalises observations and rewards, which are stored unnormalised
        :return: B windows of T rows, new ones first, the rest drawn uniformly; a window may contain several episodes
        :raises ValueError: if no window is complete yet
        """
        if self._write_back.pending:
            self._write_back.write_ready()
        windows = self._draw_windows(batch_size)
        if self.device.type != "cuda" or self._uses_mirror(env):
            return self._gather(*windows, env)
        # Copy on a side stream while the main stream computes. The main stream waits for the copies, not the reverse.
        side, main = side_stream(self.device), th.cuda.current_stream(self.device)
        with th.cuda.stream(side):
            batch = self._gather(*windows, env)
        main.wait_stream(side)
        for tensor in tensors_of(batch):
            tensor.record_stream(main)
        return batch

    def sample_sequences(
        self, n: int, length: int, generator: np.random.Generator, env: VecNormalize | None = None
    ) -> SequenceBatch:
        """
        Draw windows without affecting training: new windows stay in their queue, and numpy's global random numbers do not
        change.

        :param n: number of windows
        :param length: T, may differ from ``batch_length``
        :param generator: draws the windows
        :param env: as for :meth:`sample`
        :return: n windows of T rows, drawn uniformly
        :raises ValueError: if no window of this length is complete yet
        """
        n_windows = np.maximum(self.filled - length - int(self.replay_context) + 1, 0)
        if not n_windows.any():
            raise ValueError(
                f"The replay buffer has no sequence of {length} rows{' and the row before' if self.replay_context else ''}: "
                f"no environment has more than {self.filled.max()} rows"
            )
        if self._write_back.pending:
            self._write_back.write_ready()
        draws = generator.integers(n_windows.sum(), size=n)
        return self._gather(*nth_windows(draws, n_windows, self.counts - self.filled), env, length)

    def _gather(
        self, envs: np.ndarray, first: np.ndarray, env: VecNormalize | None, length: int | None = None
    ) -> SequenceBatch:
        """
        :param envs: environment of each window (B,)
        :param first: number of its first row, which is the context row if there is one (B,)
        :param length: T; None: ``batch_length``
        :return: the windows
        """
        context = first if self.replay_context else first - 1  # (B,); without a context row, the number before the window
        steps = (context + 1)[:, None] + np.arange(length or self.batch_length)  # (B, T)
        where = steps % self.buffer_size, envs[:, None]
        is_first = self.is_first[where]
        if not self.replay_context:
            is_first[:, 0] = True  # the model then starts from zeros, as in a new episode
        rewards = self._normalize_reward(self.rewards[where], env)
        dones, timeouts = self.dones[where], self.timeouts[where]
        return SequenceBatch(
            observations=self._observations(where, env),
            prev_actions=self._to_device(self.actions[where]),
            rewards=self._to_device(rewards),
            is_first=self._to_device(is_first),
            is_last=self._to_device(dones),
            is_terminal=self._to_device(dones & ~timeouts),
            initial=self._initial_latents(context, envs),
            indices=SequenceIndices(steps, envs),
        )

    def _uses_mirror(self, env: VecNormalize | None) -> bool:
        """:return: whether observations come from the copy on the device, which holds them as stored"""
        return self.storage == "device" and env is None

    def _observations(self, where: tuple[np.ndarray, np.ndarray], env: VecNormalize | None) -> TensorObs:
        """
        :param where: positions (B, T) and environments (B, 1)
        :param env: normalises the observations; None: as stored
        :return: observations (B, T, ...) on the device
        """
        if self._uses_mirror(env):
            by_key = self._mirror().gather(*where)
        else:
            rows = {key: array[where] for key, array in as_array_dict(self.observations).items()}
            is_dict = isinstance(self.observations, dict)
            normalized = self._normalize_obs(rows if is_dict else rows[SINGLE_KEY], env)
            by_key = {key: self._to_device(array) for key, array in as_array_dict(normalized).items()}
        return by_key if isinstance(self.observations, dict) else by_key[SINGLE_KEY]

    def _draw_windows(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """:return: environment (B,) and number of the first row (B,) of each window, the context row if there is one"""
        n_windows = self.n_windows
        if not n_windows.any():
            is_large = self.buffer_size >= self.window_length
            raise ValueError(
                f"No window of {self.window_length} rows is complete (batch_length={self.batch_length}, and with "
                f"`replay_context` the row before): no environment has more than {self.filled.max()} rows, and each can "
                f"have {self.buffer_size} (`buffer_size` divided by {self.n_envs} environments). "
                f"{'Collect more steps' if is_large else 'Increase `buffer_size` or decrease `batch_length`'}"
            )
        oldest = self.counts - self.filled
        fresh: list[tuple[int, int]] = []
        while self.online_queue and self._queue and len(fresh) < batch_size:
            window = env, step = self._queue.popleft()
            if step >= oldest[env]:  # otherwise some of its rows were overwritten
                fresh.append(window)
        self.n_new_windows = len(fresh)
        envs, first = nth_windows(np.random.randint(0, n_windows.sum(), size=batch_size - len(fresh)), n_windows, oldest)
        if fresh:
            fresh_envs, fresh_first = np.array(fresh).T
            envs, first = np.concatenate([fresh_envs, envs]), np.concatenate([fresh_first, first])
        return envs, first

    def _to_device(self, array: np.ndarray) -> th.Tensor:
        # Fancy indexing has already made a copy, so on the CPU the tensor can share its memory.
        return th.as_tensor(array) if self.device.type == "cpu" else to_device(array, self.device)
