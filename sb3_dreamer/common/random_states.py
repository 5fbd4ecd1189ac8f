"""States of the random generators of the process: python, numpy, torch and one CUDA device."""

import random
from typing import Any

import numpy as np
import torch as th


def get_random_states(device: th.device | None = None) -> dict[str, Any]:
    """
    :param device: also save the generator of this device, if it is a CUDA device
    :return: the states by library
    """
    states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}
    if device is not None and device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Any], device: th.device | None = None) -> None:
    """
    :param states: from :func:`get_random_states`
    :param device: the CUDA device whose generator continues, if its state was saved
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if "cuda" in states and device is not None and device.type == "cuda":
        th.cuda.set_rng_state(states["cuda"], device)
