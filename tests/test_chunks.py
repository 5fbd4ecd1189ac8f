"""Rows of a replay buffer in checkpoints: only those that have changed are written."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.checkpoint import Checkpoint, CheckpointError, checkpoint_folder
from sb3_dreamer.common.replay import chunks as module
from sb3_dreamer.common.replay.chunks import ReplayChunks, read_chunks
from sb3_dreamer.common.type_aliases import LatentState, SequenceIndices
from tests.support.checkpoints import new_checkpoint
from tests.support.helpers import random_observations

BOX = spaces.Box(-1, 1, (3,), np.float32)
DICT = spaces.Dict({"image": spaces.Box(0, 255, (3, 16, 16), np.uint8), "goal": BOX})


def buffer_of(space=BOX, rows=40, n_envs=2, action_space=BOX, **kwargs):
    shape = dict(n_envs=n_envs, batch_length=4, latent_shape=(6, 2, 3), device="cpu")
    return SequenceReplayBuffer(rows * n_envs, space, action_space, **{**shape, **kwargs})


def fill(buffer, n_steps, seed=0):
    rng, n = np.random.default_rng(seed), buffer.n_envs
    for _ in range(n_steps):
        obs = random_observations(buffer.observation_space, (n,), rng)
        next_obs = random_observations(buffer.observation_space, (n,), rng)
        obs, next_obs = (
            {key: value.numpy() for key, value in part.items()} if isinstance(part, dict) else part.numpy()
            for part in (obs, next_obs)
        )
        dones = rng.random(n) < 0.2
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (n, 3)), rng.random(n), dones, [{}] * n)


def save(chunks, path, step, previous=None):
    with new_checkpoint(path, step, previous) as writer:
        content = chunks.write(writer)
        writer.close({"replay": content})
    chunks.mark_written()
    return Checkpoint(checkpoint_folder(path, step))


def is_same_file(first, second, name):
    return (first.folder / name).samefile(second.folder / name)


def assert_same_rows(mine, theirs):
    assert np.array_equal(mine.counts, theirs.counts) and list(mine._queue) == list(theirs._queue)
    for name, array in mine._arrays().items():
        np.testing.assert_array_equal(array, theirs._arrays()[name], err_msg=name)


@pytest.fixture
def small_chunks(monkeypatch):
    """Seven positions per file."""
    monkeypatch.setattr(module, "chunk_length", lambda buffer: 7)


@pytest.mark.parametrize("space", [BOX, DICT], ids=["vector", "dict"])
@pytest.mark.parametrize("n_steps", [0, 5, 30, 90])
def test_there_and_back(space, n_steps, tmp_path, small_chunks):
    buffer = buffer_of(space)
    fill(buffer, n_steps)
    checkpoint = save(ReplayChunks(buffer, "replay/0"), tmp_path, 1)
    other = buffer_of(space)
    read_chunks(checkpoint, checkpoint.content()["replay"], other, "replay/0")
    assert_same_rows(other, buffer)
    fill(buffer, 3, seed=1)
    fill(other, 3, seed=1)
    assert_same_rows(other, buffer)


def test_only_changed_rows_are_written(tmp_path, small_chunks):
    """The first rows are shared with the checkpoint before, latents of all rows are written again."""
    buffer = buffer_of(rows=70)
    chunks = ReplayChunks(buffer, "replay/0")
    fill(buffer, 20)
    first = save(chunks, tmp_path, 1)
    old = SequenceIndices(np.array([[0, 1]]), np.array([1]))
    buffer.update_latents(old, LatentState(th.ones(1, 2, 6), th.eye(3)[[1, 2]].expand(1, 2, 2, 3)))
    oldest_new = int(buffer.counts.min()) - 1  # the row that may be marked as truncated
    fill(buffer, 10, seed=1)
    second = save(chunks, tmp_path, 2, first)
    for kind, n_shared in (("rows", oldest_new // 7), ("latents", 0)):
        names = sorted(name for name in second.entries if kind in name)
        shared = [name for name in names if name in first.entries and is_same_file(first, second, name)]
        assert shared == names[:n_shared]
    assert oldest_new == 39
    other = buffer_of(rows=70)
    read_chunks(second, second.content()["replay"], other, "replay/0")
    assert_same_rows(other, buffer)
    assert other.deter[0, 1].tolist() == [1.0] * 6


def test_an_abandoned_episode_changes_its_last_row(tmp_path, small_chunks):
    """The row before the new ones is marked as truncated, and may be in a chunk of its own."""
    buffer = buffer_of(rows=70, n_envs=1)
    chunks = ReplayChunks(buffer, "replay/0")
    zeros, infos = np.zeros((1, 3)), [{}]
    for _ in range(6):
        buffer.add(zeros, zeros, zeros, np.zeros(1), np.zeros(1), infos)
    assert buffer.counts[0] == 7
    first = save(chunks, tmp_path, 1)
    buffer.mark_starts(np.ones(1, dtype=bool))
    buffer.add(zeros, zeros, zeros, np.zeros(1), np.zeros(1), infos)
    second = save(chunks, tmp_path, 2, first)
    other = buffer_of(rows=70, n_envs=1)
    read_chunks(second, second.content()["replay"], other, "replay/0")
    assert other.dones[6, 0] and other.timeouts[6, 0]


def test_wrapped_buffer(tmp_path, small_chunks):
    """Checkpoints of a buffer whose oldest rows are overwritten again and again."""
    buffer, previous = buffer_of(rows=33), None
    chunks = ReplayChunks(buffer, "replay/0")
    for step in range(1, 12):
        fill(buffer, 9, seed=step)
        previous = save(chunks, tmp_path, step, previous)
        other = buffer_of(rows=33)
        read_chunks(previous, previous.content()["replay"], other, "replay/0")
        assert_same_rows(other, buffer)


def test_another_size_keeps_the_newest_rows(tmp_path):
    buffer = buffer_of(rows=40)
    fill(buffer, 30)
    checkpoint = save(ReplayChunks(buffer, "replay/0"), tmp_path, 1)
    for rows in (12, 90):
        other = buffer_of(rows=rows)
        read_chunks(checkpoint, checkpoint.content()["replay"], other, "replay/0")
        assert other.buffer_size == rows and (other.filled == np.minimum(buffer.filled, rows)).all()
        last = (buffer.counts - 1) % 40, (other.counts - 1) % rows
        np.testing.assert_array_equal(buffer.observations[last[0], [0, 1]], other.observations[last[1], [0, 1]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_envs=1), "made with `n_envs` 2, the model has 1"),
        (dict(space=DICT), "made with `observation_space` "),
        (dict(action_space=spaces.Box(-2, 2, (3,), np.float32)), "made with `action_space` "),
        (dict(latent_shape=(8, 2, 3)), r"made with `latent_shape` \(6, 2, 3\), the model has \(8, 2, 3\)"),
        (dict(replay_context=False), "made with `replay_context` True, the model has False"),
    ],
)
def test_another_buffer_is_refused_by_name(changes, message, tmp_path):
    buffer = buffer_of()
    fill(buffer, 5)
    checkpoint = save(ReplayChunks(buffer, "replay/0"), tmp_path, 1)
    other = buffer_of(**changes)
    with pytest.raises(ValueError, match=message):
        read_chunks(checkpoint, checkpoint.content()["replay"], other, "replay/0")


def test_a_damaged_file_leaves_the_buffer_empty(tmp_path):
    buffer = buffer_of()
    fill(buffer, 5)
    checkpoint = save(ReplayChunks(buffer, "replay/0"), tmp_path, 1)
    path = checkpoint.folder / "replay/0/latents_0000.npz"
    path.write_bytes(path.read_bytes()[:-1])
    other = buffer_of()
    with pytest.raises(CheckpointError, match=r"latents_0000.npz is damaged"):
        read_chunks(checkpoint, checkpoint.content()["replay"], other, "replay/0")
    assert not other.counts.any() and not other.can_sample()
