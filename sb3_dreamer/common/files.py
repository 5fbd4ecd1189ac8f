"""Files and folders that are complete or absent: written under another name, synced to the disk, then renamed."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished"


def sync_folder(folder: Path) -> None:
    """
    Write the entries of a folder to the disk, so that a renamed file has its new name after a crash of the system.

    :param folder: the folder; systems that cannot open folders are left alone
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """
    A file to write to, which replaces ``path`` once it is complete. If writing fails, ``path`` is unchanged.

    :param path: file to replace; its folder is created
    :raises OSError: if the folder cannot be written to, or the disk is full
    """
    path = Path(os.path.realpath(path))  # a link is followed, not replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device or a pipe
        with path.open("wb") as file:
            yield file
        return
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """
    A folder to write to, which gets the name ``path`` once it is complete. If writing fails, nothing remains.

    :param path: folder that does not exist yet
    :raises OSError: if it exists, cannot be written to, or the disk is full
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unfinished.mkdir()
        yield unfinished
        sync_folder(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(path.parent)


def with_suffix(path: Path, suffix: str) -> Path:
    """:return: the path, with the suffix if it has none, as SB3 names its files"""
    return path if path.suffix else path.with_name(f"{path.name}.{suffix}")
