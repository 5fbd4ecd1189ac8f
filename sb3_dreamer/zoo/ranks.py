"""RL Zoo under torchrun: every rank runs the whole command; one folder, one evaluation."""

import atexit
import os
import shutil
import tempfile
from typing import Any


def adapt_to_rank(arguments: dict[str, Any]) -> None:
    """
    Evaluate and save after so many steps of all ranks, on the main one only; the others write into a folder that is dropped.

    :param arguments: those of ``ExperimentManager``, all of them; changed in place
    :raises ValueError: if hyperparameters are to be searched
    """
    if arguments["optimize_hyperparameters"]:
        raise ValueError("`-optimize` must run in one process, got ranks of a launcher: each would draw trials of its own")
    for name in ("eval_freq", "save_freq"):
        if arguments[name] > 0:
            arguments[name] = max(arguments[name] // int(os.environ["WORLD_SIZE"]), 1)
    if os.environ["RANK"] != "0":
        folder = tempfile.mkdtemp(prefix="sb3_dreamer_rank")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        arguments.update(log_folder=folder, tensorboard_log="", eval_freq=-1, save_freq=-1, verbose=0, show_progress=False)
