"""Rows of a replay buffer in files of limited size, of which a checkpoint writes those that have changed."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.checkpoint import Checkpoint, CheckpointError, CheckpointWriter

BYTES_PER_CHUNK = 32 * 2**20
# Latents change with every update, all other arrays when a row is added.
LATENT_ARRAYS = ("deter", "stoch", "has_latent")
COUNTERS = ("counts", "_opens_episode", "_outcomes")


class ReplayChunks:
    """
    Writes a buffer to checkpoints. Positions of the buffer are split into chunks of equal length. A chunk has one file with
    the latents, which is always written, and one with all other arrays, which is only written if a row was added to it since
    the last checkpoint.

    :param buffer: the buffer
    :param prefix: folder of the files inside of the checkpoint
    """

    def __init__(self, buffer: SequenceReplayBuffer, prefix: str):
        self.buffer = buffer
        self.prefix = prefix
        self.written: np.ndarray | None = None  # rows of each stream in the last checkpoint
        self.layout: tuple[int, ...] = ()  # of that checkpoint

    def write(self, writer: CheckpointWriter) -> dict[str, Any]:
        """
        Write the files. Call :meth:`mark_written` once the checkpoint is complete.

        :param writer: writer of the checkpoint
        :return: what :func:`read_chunks` needs in addition to the files
        """
        buffer = self.buffer
        buffer._write_back.flush()
        length = chunk_length(buffer)
        used = int(buffer.filled.max()) if buffer.is_allocated else 0
        changed = self._changed_chunks(length)
        for chunk, start in enumerate(range(0, used, length)):
            rows, latents = split_arrays(buffer, slice(start, min(start + length, used)))
            name = f"{self.prefix}/rows_{chunk:04d}.npz"
            if chunk in changed or not writer.share(name):
                writer.write_arrays(name, rows)
            writer.write_arrays(f"{self.prefix}/latents_{chunk:04d}.npz", latents)
        return describe_buffer(buffer) | dict(length=length, used=used)

    def _changed_chunks(self, length: int) -> set[int]:
        """:return: numbers of the chunks that have got a row since the last checkpoint"""
        buffer = self.buffer
        if self.written is None or self.layout != layout_of(buffer):
            return set(range(-(-buffer.buffer_size // length)))
        changed: set[int] = set()
        for before, now in zip(self.written, buffer.counts, strict=True):
            # One row earlier: an episode that was abandoned is marked as truncated in its last row.
            steps = np.arange(max(before - 1, now - buffer.buffer_size, 0), now)
            changed |= set((steps % buffer.buffer_size // length).tolist())
        return changed

    def mark_written(self) -> None:
        """Remember what the checkpoint contains."""
        self.written, self.layout = self.buffer.counts.copy(), layout_of(self.buffer)


def layout_of(buffer: SequenceReplayBuffer) -> tuple[int, ...]:
    """:return: numbers that are equal as long as rows stay at their positions"""
    return chunk_length(buffer), buffer.buffer_size, buffer.n_moves


def chunk_length(buffer: SequenceReplayBuffer) -> int:
    """:return: positions of the buffer per file"""
    bytes_per_position = max(1, buffer.nbytes // buffer.buffer_size)  # of all environments
    return max(1, BYTES_PER_CHUNK // bytes_per_position)


def split_arrays(buffer: SequenceReplayBuffer, where: slice) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """:return: by name the part of each array at these positions: all arrays except latents, and latents"""
    parts = {name: array[where] for name, array in buffer._arrays().items()}
    latents = {name: parts.pop(name) for name in LATENT_ARRAYS}
    return parts, latents


def describe_buffer(buffer: SequenceReplayBuffer) -> dict[str, Any]:
    """:return: what a buffer must have in common with the one that is read, its counters and its queue"""
    same = dict(
        n_envs=buffer.n_envs,
        observation_space=describe_space(buffer.observation_space),
        action_space=describe_space(buffer.action_space),
        latent_shape=buffer.latent_shape,
        replay_context=buffer.replay_context,
    )
    counters = {name: getattr(buffer, name).copy() for name in COUNTERS}
    queue = [tuple(window) for window in buffer._queue]
    return dict(same=same, buffer_size=buffer.buffer_size, batch_length=buffer.batch_length, queue=queue, **counters)


def describe_space(space: spaces.Space) -> str:
    """:return: a text that is equal for equal spaces"""
    if isinstance(space, spaces.Dict):
        return str({key: describe_space(part) for key, part in sorted(space.spaces.items())})
    return f"{space}"


def read_chunks(checkpoint: Checkpoint, content: dict[str, Any], buffer: SequenceReplayBuffer, prefix: str) -> None:
    """
    Fill a buffer from a checkpoint. If the buffer is smaller, it keeps the newest rows. If reading fails, it is empty.

    :param checkpoint: the checkpoint
    :param content: from :meth:`ReplayChunks.write`
    :param buffer: buffer to be filled
    :param prefix: folder of the files inside of the checkpoint
    :raises ValueError: if the buffer does not fit
    :raises CheckpointError: if a file is damaged
    """
    for name, theirs in content["same"].items():
        mine = describe_buffer(buffer)["same"][name]
        if mine != theirs:
            raise ValueError(f"The checkpoint was made with `{name}` {theirs}, the model has {mine}")
    wanted = buffer.buffer_size
    if not content["used"]:
        return
    try:
        buffer.resize(content["buffer_size"])
        buffer._allocate()
        for chunk, start in enumerate(range(0, content["used"], content["length"])):
            where = slice(start, min(start + content["length"], content["used"]))
            arrays = buffer._arrays()
            for kind in ("rows", "latents"):
                for name, part in checkpoint.read_arrays(f"{prefix}/{kind}_{chunk:04d}.npz").items():
                    arrays[name][where] = part
        for name in COUNTERS:
            getattr(buffer, name)[:] = content.get(name, getattr(buffer, name))
        buffer.note_stored_outcomes()  # checkpoints of older versions do not hold them
        if content["batch_length"] == buffer.batch_length:
            buffer._queue.extend(tuple(window) for window in content["queue"])
    except (CheckpointError, KeyError, ValueError):
        buffer.reset()
        raise
    finally:
        buffer.resize(wanted)


# ---- rows of another buffer ----


def empty_like(buffer: SequenceReplayBuffer) -> SequenceReplayBuffer:
    """:return: a buffer of the same kind without rows"""
    return SequenceReplayBuffer(
        buffer.buffer_size * buffer.n_envs,
        buffer.observation_space,
        buffer.action_space,
        buffer.device,
        n_envs=buffer.n_envs,
        batch_length=buffer.batch_length,
        latent_shape=buffer.latent_shape,
        replay_context=buffer.replay_context,
        storage=buffer.storage,
        storage_folder=buffer.storage_folder,
    )


def put_before(buffer: SequenceReplayBuffer, older: SequenceReplayBuffer) -> None:
    """
    Put the rows of another buffer before the rows of this one, stream by stream. The newest rows are kept.

    :param buffer: buffer to be changed
    :param older: buffer with the same spaces and number of environments
    """
    if not older.is_allocated:
        return
    mine = {name: array.copy() for name, array in buffer._arrays().items()}
    filled, oldest, opens_episode = buffer.filled, buffer.counts - buffer.filled, buffer._opens_episode
    buffer._allocate()
    buffer._clear_streams()
    for env in range(buffer.n_envs):
        n_mine = int(filled[env])
        n_older = min(int(older.filled[env]), buffer.buffer_size - n_mine)
        older_rows = (older.counts[env] - n_older + np.arange(n_older)) % older.buffer_size
        my_rows = (oldest[env] + np.arange(n_mine)) % buffer.buffer_size
        for name, array in buffer._arrays().items():
            array[:n_older, env] = older._arrays()[name][older_rows, env]
            if n_mine:  # otherwise there are no arrays yet
                array[n_older : n_older + n_mine, env] = mine[name][my_rows, env]
        buffer.counts[env] = n_older + n_mine
        if n_older and n_mine:
            buffer.is_first[n_older, env] = True
            buffer.actions[n_older, env], buffer.rewards[n_older, env] = 0, 0.0
            buffer._opens_episode[env] = opens_episode[env]
        if n_older and not buffer.dones[n_older - 1, env]:  # their last episode is cut
            buffer.dones[n_older - 1, env] = buffer.timeouts[n_older - 1, env] = True
    buffer.note_stored_outcomes()
