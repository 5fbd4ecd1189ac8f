"""``rl_zoo3 train -i``: continue a run, from a checkpoint or from a file of SB3."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.checkpoint import CHECKPOINTS, INDEX, find_checkpoints, open_checkpoint
from sb3_dreamer.common.distributed.launch import is_launched
from sb3_dreamer.dreamerv3 import DreamerV3

OPTIONS = ("-i", "--trained-agent")
OF_NETWORKS = ("model_size", "policy_kwargs")
# RL Zoo only takes a .zip for -i. An empty one stands for the folder: path of the file -> folder.
stand_ins: dict[str, Path] = {}


def find_folder(path: str) -> Path | None:
    """:return: the folder with checkpoints that ``-i`` names: that folder, a checkpoint, or RL Zoo's folder of a run"""
    folder = Path(path)
    if (folder / INDEX).is_file() or find_checkpoints(folder):
        return folder
    return folder / CHECKPOINTS if find_checkpoints(folder / CHECKPOINTS) else None


def accept_folder(arguments: list[str]) -> None:
    """
    Replace a folder with checkpoints by a file that RL Zoo accepts.

    :param arguments: of the command line, changed in place
    """
    for i, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        at = i if value else i + 1
        if option not in OPTIONS or at >= len(arguments):
            continue
        folder = find_folder(value or arguments[at])
        if folder is not None:
            temporary = tempfile.mkdtemp(prefix="sb3_dreamer_resume")
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
            file = Path(temporary) / "checkpoint.zip"
            file.touch()
            stand_ins[str(file)] = folder
            arguments[at] = f"{option}={file}" if value else str(file)


def resume(manager: Any, hyperparams: dict[str, Any], env: VecEnv) -> DreamerV3:
    """
    :param manager: ``ExperimentManager`` with a stand-in as ``trained_agent``
    :param hyperparams: of the preset
    :param env: environment
    :return: the model, which continues the run
    """
    folder = stand_ins[manager.trained_agent]
    print(f"Continuing from {folder}, with the networks of that run")
    # As RL Zoo does with a .zip: networks come from the file, other settings from preset and command line.
    missing = open_checkpoint(folder).content()["settings"]["missing"]
    settings = {name: value for name, value in hyperparams.items() if name not in OF_NETWORKS or name in missing}
    process = {name: getattr(manager, name) for name in ("seed", "tensorboard_log", "verbose")}
    return DreamerV3.resume(folder, env, manager.device, **settings | process)


def add_callback(manager: Any) -> None:
    """:param manager: ``ExperimentManager`` with ``--save-freq``, which then also saves checkpoints to continue from"""
    if manager.save_freq > 0 and not manager.optimize_hyperparameters and not is_launched():
        steps = manager.save_freq * manager.n_envs  # RL Zoo has divided it by the number of environments
        manager.callbacks.append(DreamerCheckpointCallback(steps, Path(manager.save_path) / CHECKPOINTS, verbose=1))
