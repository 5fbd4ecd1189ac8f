"""Checkpoints of a run: everything that the rest of the run depends on, in one file that is replaced atomically."""

from pathlib import Path
from typing import Any

import cloudpickle
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dreamer.common.random_states import get_random_states, set_random_states

# References between the saved objects: restored by construction. (Class members of SB3's wrappers cannot be pickled.)
LINKS = ("env", "_vec_normalize_env", "venv", "class_attributes")
# Not saved on CUDA: captured graphs, and what belongs to the environments.
NOT_FROM_CUDA = "loss_module _update _act _last_obs _last_original_obs _last_episode_starts _last_state".split()


def parts(model: BaseAlgorithm) -> list[Any]:
    """:return: objects with training state: the model, and its environment wrappers from the outside in"""
    found: list[Any] = [model]
    layer = model.get_env()
    while layer is not None:
        found.append(layer)
        layer = getattr(layer, "venv", None)
    return found


def save(path: Path, model: BaseAlgorithm, device: str, progress: dict[str, Any]) -> None:
    """
    On CUDA, only the model is saved: environments that render there cannot be, so a resumed run resets them.

    :param path: the file
    :param model: the model with its environments
    :param device: of the run
    :param progress: of the run
    """
    saved, left_out = (parts(model), LINKS) if device == "cpu" else ([model], (*LINKS, *NOT_FROM_CUDA))
    states = [{name: value for name, value in vars(part).items() if name not in left_out} for part in saved]
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        cloudpickle.dump(dict(parts=states, progress=progress, random_states=get_random_states(model.device)), file)
    unfinished.replace(path)


def load(path: Path, model: BaseAlgorithm) -> dict[str, Any]:
    """
    :param path: the file
    :param model: a new model of the same run, which continues from the file
    :return: progress of the run
    """
    content = cloudpickle.loads(path.read_bytes())
    for part, state in zip(parts(model), content["parts"], strict=False):  # on CUDA only the model
        vars(part).update(state)
    set_random_states(content["random_states"], model.device)
    return content["progress"]
