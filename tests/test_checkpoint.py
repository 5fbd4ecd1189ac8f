"""Checkpoint folders: complete or absent, and any change on the disk is noticed."""

import errno
import json
import random
import shutil
import zlib

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common import checkpoint as module
from sb3_dreamer.common.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_folder,
    find_checkpoints,
    open_checkpoint,
    remove_old,
    set_aside,
)
from tests.support.checkpoints import new_checkpoint

CONTENT = {"steps": 7, "rows": np.arange(5), "name": "ä"}


def write(path, step, previous=None, shared=()):
    with new_checkpoint(path, step, previous) as writer:
        for name in shared:
            assert writer.share(name)
        writer.write_arrays("replay/0/rows_0000.npz", {"a": np.arange(min(step, 9)), "b": np.ones(3, dtype=bool)})
        writer.write_tensors("weights.pth", {"w": th.full((2,), float(step)), "step": step})
        writer.close(CONTENT)
    return Checkpoint(checkpoint_folder(path, step))


def read_all(folder):
    """Everything that a checkpoint contains."""
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    content = checkpoint.content()
    arrays, tensors = checkpoint.read_arrays("replay/0/rows_0000.npz"), checkpoint.read_tensors("weights.pth")
    return content["steps"], content["rows"].tolist(), content["name"], arrays["a"].tolist(), tensors["w"].tolist()


def test_there_and_back(tmp_path):
    write(tmp_path, 3)
    assert read_all(tmp_path / "checkpoint_000000003") == (7, [0, 1, 2, 3, 4], "ä", [0, 1, 2], [3.0, 3.0])
    write(tmp_path, 12)
    assert open_checkpoint(tmp_path).folder.name == "checkpoint_000000012"
    assert open_checkpoint(tmp_path / "checkpoint_000000003").folder.name == "checkpoint_000000003"
    with pytest.raises(FileNotFoundError, match="`path` must be a checkpoint or a folder with checkpoints"):
        open_checkpoint(tmp_path / "nothing")


def test_files_are_shared_with_the_previous_checkpoint(tmp_path):
    first = write(tmp_path, 3)
    with new_checkpoint(tmp_path, 4, first) as writer:
        assert writer.share("weights.pth") and not writer.share("unknown")
        writer.close({})
    second = Checkpoint(checkpoint_folder(tmp_path, 4))
    assert (second.folder / "weights.pth").samefile(first.folder / "weights.pth")
    shutil.rmtree(first.folder)
    assert second.read_tensors("weights.pth")["step"] == 3
    with new_checkpoint(tmp_path, 5, first) as writer:  # its files are gone
        assert not writer.share("weights.pth")
        writer.close({})


def test_a_failed_checkpoint_leaves_the_others(tmp_path, monkeypatch):
    write(tmp_path, 3)
    before = read_all(tmp_path / "checkpoint_000000003")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 4)
    monkeypatch.undo()
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint_000000003"]
    assert read_all(tmp_path / "checkpoint_000000003") == before


def test_old_ones_are_removed(tmp_path):
    for step in (3, 1_000_000_000, 999_999_999, 7):
        write(tmp_path, step)
    (tmp_path / "checkpoint_000000009.unfinished").mkdir()
    (tmp_path / "mine").mkdir()
    remove_old(tmp_path, 2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "checkpoint_1000000000",
        "checkpoint_999999999",
        "mine",
    ]


def test_later_ones_are_set_aside(tmp_path):
    for step in (3, 5, 7):
        write(tmp_path, step)
    set_aside(tmp_path, 3)
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["checkpoint_000000003"]
    assert (tmp_path / "checkpoint_000000007.abandoned").is_dir()


def test_every_damage_is_noticed(tmp_path):
    """Flipped bits, cut files, swapped files, missing files: always a CheckpointError that names the older checkpoint."""
    write(tmp_path, 3)
    whole = write(tmp_path, 8).folder
    names, rng = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()], random.Random(0)
    originals = {name: (whole / name).read_bytes() for name in names}
    for case in range(300):
        name = rng.choice(names)
        content = bytearray(originals[name])
        kind = case % 4
        if kind in (0, 1):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            content = content[: rng.randrange(len(content))]
        else:
            content = bytearray(originals[rng.choice([other for other in names if other != name])])
        (whole / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint_000000003") as caught:
            read_all(whole)
        assert name in str(caught.value), (case, name)
        (whole / name).write_bytes(originals[name])
    for name in names:
        (whole / name).unlink()
        with pytest.raises(CheckpointError, match="checkpoint_000000003"):
            read_all(whole)
        (whole / name).write_bytes(originals[name])
    assert read_all(whole)[0] == 7


def test_other_format_and_files_outside(tmp_path):
    folder = write(tmp_path, 3).folder

    def change(**changes):
        _, _, text = (folder / "checkpoint.json").read_text().partition("\n")
        text = json.dumps(json.loads(text) | changes)
        (folder / "checkpoint.json").write_text(f"{zlib.crc32(text.encode()):08x}\n{text}\n")

    change(files={"../../secret": [1, 2]})
    with pytest.raises(CheckpointError, match="a file outside of it"):
        Checkpoint(folder)
    change(format=99)
    with pytest.raises(CheckpointError, match="has format 99, and this version of sb3_dreamer reads format 1"):
        Checkpoint(folder)


def test_no_pickle(tmp_path):
    """A file with code is refused, although its checksum is right."""
    with new_checkpoint(tmp_path, 3) as writer:
        writer.write_tensors("weights.pth", {"code": print})
        writer.close({})
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        open_checkpoint(tmp_path).read_tensors("weights.pth")
