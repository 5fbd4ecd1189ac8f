"""Arrays of the replay buffer in files, which the system reads and writes as if they were memory."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def check_folder(folder: str | Path | None) -> str:
    """
    :param folder: folder for the files, made if it is missing; None: the system's folder for temporary files
    :return: its path
    :raises OSError: if no file can be written there
    """
    path = tempfile.gettempdir() if folder is None else str(folder)
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise OSError(f"`storage_folder` must be a folder in which files can be written, got {path} ({error})") from error


def check_space(n_bytes: int, folder: str) -> None:
    """
    :param n_bytes: bytes of all arrays
    :param folder: folder of the files
    :raises OSError: if the disk has not enough free space
    """
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(
            f"The replay buffer needs {n_bytes / 1e9:.2f}GB on the disk of {folder}, of which {free / 1e9:.2f}GB are free: "
            "reduce `buffer_size`, or choose another disk by replay_buffer_kwargs=dict(storage_folder=...)"
        )


def zeros_on_disk(shape: tuple[int, ...], dtype: Any, folder: str | Path | None) -> np.ndarray:
    """
    Create an array in a file without a name: its space is freed when the array is garbage-collected or the process ends, even
    if it is killed.

    :param shape: shape of the array
    :param dtype: dtype of the array
    :param folder: folder of the file; None: the system's folder for temporary files
    :return: array of zeros; what is written to it goes to the file
    :raises OSError: if the space cannot be reserved
    """
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if n_bytes == 0:  # an empty file cannot be mapped
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file.fileno(), n_bytes)
        # As a plain array, whose indexing is faster than that of a `memmap`. It keeps the mapping alive.
        return np.asarray(np.memmap(file, dtype, mode="r+", shape=shape))


def reserve(file: int, n_bytes: int) -> None:
    """
    Reserve the space of a file now, because the system kills a process that writes to a mapped file on a full disk.

    :param file: file descriptor
    :param n_bytes: size of the file
    :raises OSError: if the space cannot be reserved
    """
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except AttributeError:  # pragma: no cover
        os.truncate(file, n_bytes)  # not on this system
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot reserve space
            raise OSError(f"{n_bytes / 1e9:.2f}GB of the replay buffer could not be reserved on disk ({error})") from error
        os.truncate(file, n_bytes)
