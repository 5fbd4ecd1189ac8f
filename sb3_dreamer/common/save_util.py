"""Clear errors for files that the installed numpy cannot read; nested tensors in a file of plain arrays."""

import io
import os
import pathlib
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.save_util import open_path

FilePath = str | pathlib.Path | io.BufferedIOBase
# Errors of pickle if the installed numpy does not have what another version has pickled.
LACKS = re.compile(r"No module named 'numpy|<module 'numpy|known BitGenerator")


def numpy_of(model_file: FilePath) -> str:
    """:return: version of numpy that wrote the file of a model"""
    file = open_path(model_file, "r", suffix="zip")
    with zipfile.ZipFile(file) as archive:
        found = re.search(r"Numpy: (\S+)", archive.read("system_info.txt").decode())
    if isinstance(model_file, (str, pathlib.Path)):
        file.close()
    return found[1] if found else "?"


@contextmanager
def explain_newer_numpy(model_file: FilePath | None = None) -> Iterator[None]:
    """
    Context for reading a file.

    :param model_file: file of a model, which stores the version of numpy that wrote it; None: another file
    :raises ImportError: if the installed numpy cannot read the file. The message names the versions.
    """
    try:
        with warnings.catch_warnings():
            # SB3 skips what it cannot read, and fails later.
            warnings.filterwarnings("error", f"(?s)Could not deserialize object .*({LACKS.pattern})")
            yield
    except (ImportError, AttributeError, ValueError, UserWarning) as error:
        if not LACKS.search(str(error)):
            raise
        theirs = "another numpy, probably a newer one" if model_file is None else f"numpy {numpy_of(model_file)}"
        reason = str(error).splitlines()[-1].removeprefix("Exception: ")
        raise ImportError(
            f"The file was written with {theirs}, and the numpy {np.__version__} that is installed cannot read it "
            f"({reason}): install the other one, or one that is as new"
        ) from error


def named_arrays(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    """
    :param tree: tensors and arrays in nested dicts and named tuples
    :param name: of the tree
    :return: arrays by their path, such as ``observations/camera``
    """
    if isinstance(tree, th.Tensor):
        tree = tree.detach().cpu()
        return {name: (tree.float() if tree.dtype == th.bfloat16 else tree).numpy()}
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if not isinstance(tree, dict):
        return {name: np.asarray(tree)}
    arrays: dict[str, np.ndarray] = {}
    for key, part in tree.items():
        arrays |= named_arrays(part, f"{name}/{key}" if name else str(key))
    return arrays


def save_arrays(tree: Any, prefix: str, folder: str | None = None) -> str:
    """
    Save tensors as plain arrays in a new file, which ``numpy.load`` reads without pickle.

    :param tree: see :func:`named_arrays`
    :param prefix: start of the file's name
    :param folder: if it is None or cannot be written to, the folder for temporary files is taken
    :return: path of the file
    :raises OSError: if no file can be written
    """
    try:
        handle, path = tempfile.mkstemp(suffix=".npz", prefix=prefix, dir=folder)
    except OSError:
        handle, path = tempfile.mkstemp(suffix=".npz", prefix=prefix)
    with os.fdopen(handle, "wb") as file:
        np.savez(file, **named_arrays(tree))  # type: ignore[arg-type]
    return path
