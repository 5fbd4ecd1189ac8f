"""Files and folders that are complete or unchanged."""

import errno
import os

import pytest

from sb3_dreamer.common.files import atomic_file, atomic_folder, with_suffix


def test_a_file_is_replaced_when_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    with atomic_file(path) as file:
        file.write(b"two")
        file.flush()
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_changes_nothing(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(type(error)), atomic_folder(tmp_path / "folder") as folder:
        (folder / "a").touch()
        raise error
    assert len(list(tmp_path.iterdir())) == 1


def test_links_are_followed(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and target.read_bytes() == b"new"


def test_devices_are_written_to():
    with atomic_file(os.path.devnull) as file:
        file.write(b"gone")
    assert not os.path.isfile(os.path.devnull)


def test_a_folder_gets_its_name_when_complete(tmp_path):
    path = tmp_path / "folder"
    (tmp_path / "folder.unfinished").mkdir()  # of a process that was killed
    (tmp_path / "folder.unfinished" / "old").touch()
    with atomic_folder(path) as folder:
        (folder / "a").write_text("content")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a"] and [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_suffix_as_sb3(tmp_path):
    assert with_suffix(tmp_path / "model", "zip").name == "model.zip"
    assert with_suffix(tmp_path / "model.v1", "zip").name == "model.v1"
