"""A replay buffer on disk gives the batches of one in memory, and says so if the disk cannot hold it."""

import copy
import errno
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.functional import tensors_of
from sb3_dreamer.common.replay import disk
from tests.support.helpers import IMAGE, MIXED, counter_envs, counter_model
from tests.support.replay import check_buffer, check_windows, fill, plain_buffer
from tests.test_replay_device import filled, refill, sample

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).parent.parent


def free(monkeypatch, n_bytes):
    """Let the disk have this many free bytes."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=n_bytes))


def mapped_files(folder):
    """Files in a folder that are mapped into the memory of this process."""
    return [line.split()[-2] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def open_files(folder):
    """Files in a folder that this process has opened, as paths of their descriptors."""
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [path for path in paths if os.path.islink(path) and os.readlink(path).startswith(str(folder))]


def assert_same_rows(one, other):
    for name, array in other._arrays().items():
        assert one._arrays()[name].dtype == array.dtype, name
        np.testing.assert_array_equal(one._arrays()[name], array, err_msg=name)


@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "dict"])
def test_batches_are_those_of_memory(space, tmp_path):
    memory, on_disk = filled(space, "memory"), filled(space, "disk")
    for _ in range(3):
        for buffer in (memory, on_disk):
            refill(buffer, space)
        assert_same_rows(on_disk, memory)
        ours, theirs = tensors_of(sample(on_disk)), tensors_of(sample(memory))
        assert len(ours) >= 8
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == other.dtype and th.equal(mine, other)


def test_a_run_is_that_in_memory(tmp_path):
    memory = counter_model(training_ratio=8).learn(90)
    on_disk = counter_model(training_ratio=8, replay_buffer_kwargs=dict(storage="disk", storage_folder=tmp_path)).learn(90)
    assert on_disk.replay_buffer.storage == "disk"
    check_buffer(on_disk.replay_buffer)
    check_windows(on_disk.replay_buffer)
    assert_same_rows(on_disk.replay_buffer, memory.replay_buffer)  # latents that were written back included
    for ours, theirs in zip(on_disk.policy.parameters(), memory.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


@ON_LINUX
def test_rows_are_in_files_that_disappear(tmp_path):
    buffer = plain_buffer(storage="disk", storage_folder=tmp_path / "replay")
    assert not (tmp_path / "replay").exists()
    fill(buffer, 20)
    files = mapped_files(tmp_path)
    assert len(files) == len(buffer._arrays()) == 9
    contents = [Path(name).read_bytes() for name in open_files(tmp_path)]
    for name, array in buffer._arrays().items():
        assert type(array) is np.ndarray and array.tobytes() in contents, name
    assert os.listdir(tmp_path / "replay") == []  # the files have no names
    del buffer, array
    gc.collect()
    assert mapped_files(tmp_path) == []


@ON_LINUX
def test_space_is_reserved(tmp_path):
    array = disk.zeros_on_disk((1000, 64, 64, 3), np.uint8, tmp_path)
    (file,) = open_files(tmp_path)
    status = os.stat(file)
    assert status.st_size == array.nbytes <= status.st_blocks * 512
    assert not array.any()


def test_nothing_is_left_of_a_killed_process(tmp_path):
    program = "import os, signal, sys; from sb3_dreamer.common.replay.disk import zeros_on_disk\n"
    program += "array = zeros_on_disk((9, 9), 'f4', sys.argv[1]); array[:] = 1; os.kill(os.getpid(), signal.SIGKILL)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment)
    assert done.returncode == -9 and os.listdir(tmp_path) == []


def test_arrays_without_elements(tmp_path):
    assert disk.zeros_on_disk((7, 2, 0), np.float16, tmp_path).shape == (7, 2, 0)
    buffer = plain_buffer(storage="disk", storage_folder=tmp_path, replay_context=False)
    fill(buffer, 9)
    assert buffer.deter.shape == (30, 2, 0) and buffer.size() == 10


def test_pickles(tmp_path):
    buffer = plain_buffer(storage="disk", storage_folder=tmp_path, buffer_size=50_000)
    fill(buffer, 20)
    data = pickle.dumps(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    assert len(data) < 20_000  # rows in use only
    for copied in (pickle.loads(data), copy.deepcopy(buffer)):
        assert copied.storage == "disk" and copied.storage_folder == tmp_path
        assert_same_rows(copied, buffer)
        fill(copied, 10, start=20)  # into files of its own
        assert copied.counts[0] == 31 and buffer.counts[0] == 21
        assert not buffer.rewards[21:].any()
    if sys.platform == "linux":
        assert len(mapped_files(tmp_path)) >= 2 * 9


def test_saving_does_not_copy_the_rows():
    for storage in ("memory", "disk"):
        buffer = filled(IMAGE, storage)
        assert np.shares_memory(buffer.__getstate__()["observations"], buffer.observations)


@pytest.mark.parametrize(("saved", "loaded"), [("memory", "disk"), ("disk", "memory"), ("disk", "disk")])
def test_a_model_loads_rows_from_any_storage(saved, loaded, tmp_path):
    """A smaller buffer keeps the newest rows."""
    theirs = counter_model(replay_buffer_kwargs=dict(storage=saved)).learn(90)
    theirs.save_replay_buffer(tmp_path / "buffer")
    kwargs = dict(storage=loaded, storage_folder=tmp_path / "rows")
    ours = counter_model(buffer_size=60, replay_buffer_kwargs=kwargs)
    ours.load_replay_buffer(tmp_path / "buffer")
    assert ours.replay_buffer.storage == loaded and ours.replay_buffer.observations.shape[:2] == (20, 3)
    if sys.platform == "linux":
        assert bool(mapped_files(tmp_path / "rows")) == (loaded == "disk")
    kept = np.arange(theirs.replay_buffer.counts[0] - 20, theirs.replay_buffer.counts[0])
    np.testing.assert_array_equal(
        ours.replay_buffer.observations[kept % 20, 0], theirs.replay_buffer.observations[kept % 1000, 0]
    )
    assert ours.learn(60)._n_updates > 0
    check_buffer(ours.replay_buffer)


def test_another_length_keeps_the_newest_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_dreamer.common.replay.storage.ROWS_PER_COPY", 7)  # so that they are copied in parts
    for storage in ("memory", "disk"):
        buffer = plain_buffer(storage=storage, storage_folder=tmp_path)
        fill(buffer, 70)
        for size, n_kept in ((20, 20), (50, 20)):
            buffer.resize(size)
            assert buffer.observations.shape == (size, 2, 1) and buffer.size() == n_kept
            rows = np.arange(buffer.counts[0] - n_kept, buffer.counts[0]) % size
            np.testing.assert_array_equal(buffer.rewards[rows, 1], np.arange(70 - n_kept + 1, 71))
            np.testing.assert_array_equal(buffer.observations[rows, 0, 0], np.arange(70 - n_kept + 1, 71))


def test_a_disk_without_space(tmp_path, monkeypatch):
    kwargs = dict(storage="disk", storage_folder=tmp_path)
    model = counter_model(replay_buffer_kwargs=kwargs)
    free(monkeypatch, 50_000)
    # bytes of a row: obs 3 * 4, action 8, reward 4, four flags, deter 2 * 8, stoch 2; 3000 rows
    message = rf"needs 0\.00GB on the disk of {tmp_path}, of which 0\.00GB are free: reduce `buffer_size`, or choose another"
    with pytest.raises(OSError, match=message):
        model.learn(40)
    assert model._n_updates == 0 and not model.replay_buffer.is_allocated
    free(monkeypatch, 3000 * 46)
    model.learn(40)
    assert model._n_updates > 0

    # A second buffer does not fit next to it: the first one is kept.
    rows = copy.deepcopy(model.replay_buffer._arrays())
    free(monkeypatch, 100)
    for change in (lambda buffer: buffer.resize(500), lambda buffer: buffer.set_storage("disk", tmp_path / "other")):
        with pytest.raises(OSError, match="are free"):
            change(model.replay_buffer)
        assert model.replay_buffer.buffer_size == 1000 and model.replay_buffer.storage_folder == tmp_path
        for name, array in model.replay_buffer._arrays().items():
            np.testing.assert_array_equal(array, rows[name])
    model.replay_buffer.set_storage("memory")
    for name, array in model.replay_buffer._arrays().items():
        np.testing.assert_array_equal(array, rows[name])


def test_space_that_cannot_be_reserved(tmp_path, monkeypatch):
    def full(number):
        def fail(*_):
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(disk.os, "posix_fallocate", full(errno.ENOSPC))
    buffer = plain_buffer(storage="disk", storage_folder=tmp_path)
    with pytest.raises(OSError, match=r"0\.00GB of the replay buffer could not be reserved on disk .*No space left on device"):
        fill(buffer, 3)
    assert buffer.size() == 0 and not buffer.is_allocated
    monkeypatch.setattr(disk.os, "posix_fallocate", full(errno.EOPNOTSUPP))
    fill(buffer, 3)
    assert buffer.size() == 4


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = counter_model(replay_buffer_kwargs=dict(storage="disk", storage_folder=tmp_path / "file"))
    model.save(tmp_path / "model")
    with pytest.raises(
        OSError, match=rf"`storage_folder` must be a folder in which files can be written, got {tmp_path}/file"
    ):
        model.learn(40)
    # The model can still be loaded on a machine without the folder, to act or with another one.
    DreamerV3.load(tmp_path / "model").predict(np.zeros((2, 3), np.float32), episode_start=np.ones(2, bool))
    other = dict(storage="disk", storage_folder=tmp_path / "rows")
    DreamerV3.load(tmp_path / "model", env=counter_envs(), replay_buffer_kwargs=other).learn(40)


def test_a_buffer_from_a_machine_with_another_folder(tmp_path):
    buffer = plain_buffer(storage="disk", storage_folder=tmp_path / "rows")
    fill(buffer, 5)
    data = pickle.dumps(buffer)
    (tmp_path / "rows").rmdir()
    (tmp_path / "rows").write_text("")
    with pytest.warns(UserWarning, match="is put into the folder for temporary files"):
        loaded = pickle.loads(data)
    assert loaded.storage == "disk" and loaded.storage_folder is None
    assert_same_rows(loaded, buffer)


def test_memory_is_not_warned_of(recwarn, monkeypatch):
    """The warning about memory names the disk; the disk needs no memory."""
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    fill(plain_buffer(storage="disk"), 2)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"keep the buffer on disk by replay_buffer_kwargs=dict\(storage=\"disk\"\)"):
        fill(plain_buffer(), 2)


def test_images_stay_bytes(tmp_path):
    buffer = filled(spaces.Box(0, 255, (64, 64, 3), np.uint8), "disk", steps=3)
    assert buffer.observations.dtype == np.uint8 and buffer.observations.nbytes == 80 * 64 * 64 * 3
