"""
Folders of files that are read without pickle: JSON, plain arrays and weights. A checkpoint is complete or absent, and what
has changed on the disk since it was written is noticed.

.. code-block:: text

    PATH/
        checkpoint_000012000/       complete: the folder gets this name last
            checkpoint.json         names, sizes and checksums of all other files, and everything that is not an array
            arrays.npz              arrays of checkpoint.json
            weights.pth             weights and optimizer
            replay/0/rows_0000.npz  rows of rank 0; files that did not change are shared with the checkpoint before
        checkpoint_000014000.unfinished/    of a process that was killed
"""

import io
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_dreamer.common.files import UNFINISHED, sync_folder
from sb3_dreamer.common.plain_data import from_plain, to_plain

FORMAT = 1
INDEX, ARRAYS = "checkpoint.json", "arrays.npz"
# Folder of the checkpoints inside of the folder that RL Zoo makes for a run.
CHECKPOINTS = "checkpoints"
NAME = re.compile(r"checkpoint_(\d{9,})")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read."""


class Entry(NamedTuple):
    """Size in bytes and checksum (CRC-32) of a file."""

    size: int
    checksum: int


# ---- write ----


class CheckpointWriter:
    """
    Writes the files of one checkpoint.

    :param folder: unfinished folder
    :param previous: an older checkpoint, whose files may be shared
    """

    def __init__(self, folder: Path, previous: "Checkpoint | None" = None):
        self.folder = folder
        self.previous = previous
        self.entries: dict[str, Entry] = {}

    def write(self, name: str, content: bytes | memoryview) -> None:
        """
        :param name: path of the file inside of the checkpoint
        :param content: of the file
        """
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.entries[name] = Entry(len(content), zlib.crc32(content))

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """
        :param name: path of the file inside of the checkpoint
        :param arrays: by name
        """
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        self.write(name, file.getbuffer())

    def write_tensors(self, name: str, tensors: Any) -> None:
        """
        :param name: path of the file inside of the checkpoint
        :param tensors: nested dicts and lists of tensors and numbers
        """
        file = io.BytesIO()
        th.save(tensors, file)
        self.write(name, file.getbuffer())

    def share(self, name: str) -> bool:
        """
        Take a file of the previous checkpoint, on file systems that can share files.

        :param name: path of the file inside of both checkpoints
        :return: whether it was possible
        """
        if self.previous is None or name not in self.previous.entries:
            return False
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(self.previous.folder / name)
        except OSError:
            return False
        self.entries[name] = self.previous.entries[name]
        return True

    def close(self, content: dict[str, Any]) -> None:
        """
        Write the index. Call it last.

        :param content: numbers, strings, arrays and nested lists, tuples and dicts of these
        """
        arrays: list[np.ndarray] = []
        plain = to_plain(content, arrays, "content")
        self.write_arrays(ARRAYS, {str(i): array for i, array in enumerate(arrays)})
        text = json.dumps(dict(format=FORMAT, files=self.entries, content=plain))
        self.write(INDEX, f"{zlib.crc32(text.encode()):08x}\n{text}\n".encode())
        for folder in {self.folder / parent for name in self.entries for parent in Path(name).parents}:
            sync_folder(folder)


def checkpoint_folder(path: Path, step: int) -> Path:
    """:return: the folder of the checkpoint of this environment step"""
    return path / f"checkpoint_{step:09d}"


# ---- read ----


class Checkpoint:
    """
    A complete checkpoint.

    :param folder: the folder with the file ``checkpoint.json``
    :raises CheckpointError: if it is damaged, or of a version of this package that is too new
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = self._read_index()
        self.entries = {name: Entry(*entry) for name, entry in index["files"].items()}
        for name in self.entries:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise CheckpointError(f"{folder} names a file outside of it: {name!r}")
        self._plain = index["content"]

    def _read_index(self) -> dict[str, Any]:
        try:
            checksum, _, text = (self.folder / INDEX).read_bytes().partition(b"\n")
            if not text.endswith(b"\n") or checksum != f"{zlib.crc32(text[:-1]):08x}".encode():
                raise ValueError("its checksum is wrong")
            index = json.loads(text)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.folder / INDEX} is damaged: {error}{self.older()}") from error
        if index["format"] != FORMAT:
            raise CheckpointError(
                f"{self.folder} has format {index['format']}, and this version of sb3_dreamer reads format {FORMAT}: use the "
                "version that wrote it"
            )
        return index

    def read(self, name: str) -> bytes:
        """
        :param name: path of a file inside of the checkpoint
        :return: its content
        :raises CheckpointError: if it is missing or damaged
        """
        if name not in self.entries:
            raise CheckpointError(f"{self.folder} has no file {name!r}")
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.folder / name} cannot be read: {error}{self.older()}") from error
        if Entry(len(content), zlib.crc32(content)) != self.entries[name]:
            raise CheckpointError(f"{self.folder / name} is damaged: its checksum is wrong{self.older()}")
        return content

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """
        :param name: path of a file inside of the checkpoint
        :return: its arrays by name
        :raises CheckpointError: as :meth:`read`
        """
        with np.load(io.BytesIO(self.read(name)), allow_pickle=False) as file:
            return dict(file)

    def read_tensors(self, name: str, device: th.device | str = "cpu") -> Any:
        """
        :param name: path of a file inside of the checkpoint
        :param device: where the tensors go
        :return: the tensors
        :raises CheckpointError: as :meth:`read`, or if the file contains anything else
        """
        content = self.read(name)
        try:
            return th.load(io.BytesIO(content), map_location=device, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{self.folder / name} cannot be read as weights: {error}") from error

    def content(self) -> dict[str, Any]:
        """:return: what was passed to :meth:`CheckpointWriter.close`"""
        arrays = self.read_arrays(ARRAYS)
        return from_plain(self._plain, [arrays[str(i)] for i in range(len(arrays))])

    def verify(self) -> None:
        """
        Read all files.

        :raises CheckpointError: if one is missing or damaged
        """
        for name in self.entries:
            self.read(name)

    def older(self) -> str:
        """:return: end of an error message that names the checkpoint before this one, empty if there is none"""
        found = find_checkpoints(self.folder.parent)
        before = found[: found.index(self.folder)] if self.folder in found else []
        return f". The checkpoint before it is {before[-1]}" if before else ""


def find_checkpoints(path: str | Path) -> list[Path]:
    """:return: complete checkpoints in a folder, oldest first"""
    folders = [folder for folder in Path(path).glob("checkpoint_*") if NAME.fullmatch(folder.name) and folder.is_dir()]
    return sorted(folders, key=step_of)


def step_of(folder: Path) -> int:
    """:return: environment steps of a checkpoint, from its name"""
    name = NAME.fullmatch(folder.name)
    return -1 if name is None else int(name[1])


def open_checkpoint(path: str | Path) -> Checkpoint:
    """
    :param path: a checkpoint; the folder with several, of which the newest is opened; or RL Zoo's folder of a run
    :return: the checkpoint
    :raises FileNotFoundError: if there is none
    :raises CheckpointError: if it is damaged
    """
    path = Path(path)
    if (path / INDEX).exists() or NAME.fullmatch(path.name):
        return Checkpoint(path)
    found = find_checkpoints(path) or find_checkpoints(path / CHECKPOINTS)
    if not found:
        raise FileNotFoundError(f"`path` must be a checkpoint or a folder with checkpoints, there is none in {path}")
    return Checkpoint(found[-1])


def set_aside(path: Path, step: int) -> None:
    """
    Rename the checkpoints of later steps, because a run continues from an earlier one.

    :param path: folder of the checkpoints
    :param step: environment steps of the run
    """
    for folder in find_checkpoints(path):
        if step_of(folder) > step:
            aside = folder.with_name(folder.name + ".abandoned")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def remove_old(path: Path, keep_last: int) -> None:
    """
    Remove all checkpoints except the newest, and what killed processes have left.

    :param path: folder of the checkpoints
    :param keep_last: number of checkpoints to keep
    """
    for folder in find_checkpoints(path)[:-keep_last]:
        gone = folder.with_name(folder.name + UNFINISHED)
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)  # first, so that no half of it looks complete
        shutil.rmtree(gone, ignore_errors=True)
    for folder in path.glob(f"checkpoint_*{UNFINISHED}"):
        shutil.rmtree(folder, ignore_errors=True)
