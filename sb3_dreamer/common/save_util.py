"""Clear errors for files that the installed numpy cannot read."""

import io
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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
