"""RL Zoo with torchrun: all ranks run the same command, but only the main rank evaluates and writes to the log folder."""

import atexit
import os
import shutil
import tempfile
from typing import Any


def adapt_to_rank(arguments: dict[str, Any]) -> None:
    """
    Evaluate and save on the main rank only, with frequencies in steps of all ranks. Other ranks write to a temporary folder.

    :param arguments: all arguments of ``ExperimentManager``, changed in place
    :raises ValueError: if the command is a hyperparameter search
    """
    if arguments["optimize_hyperparameters"]:
        raise ValueError(
            "`-optimize` must run in one process, got several ranks of a launcher: each would draw its own trials"
        )
    for name in ("eval_freq", "save_freq"):
        if arguments[name] > 0:
            arguments[name] = max(arguments[name] // int(os.environ["WORLD_SIZE"]), 1)
    if os.environ["RANK"] != "0":
        folder = tempfile.mkdtemp(prefix="sb3_dreamer_rank")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        arguments.update(log_folder=folder, tensorboard_log="", eval_freq=-1, save_freq=-1, verbose=0, show_progress=False)
