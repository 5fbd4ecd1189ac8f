"""
Preprocessing of observations and actions for the model, and helpers for spaces.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.functional import device_constant, one_hot
from sb3_dreamer.common.type_aliases import NumpyObs, TensorObs

SINGLE_KEY = "obs"


def as_space_dict(space: spaces.Space) -> dict[str, spaces.Space]:
    """
    :param space: any observation space
    :return: spaces by key, in sorted order; a space that is not a Dict has the key ``"obs"``
    """
    if isinstance(space, spaces.Dict):
        return {key: space[key] for key in sorted(space.spaces)}
    return {SINGLE_KEY: space}


def as_tensor_dict(observations: TensorObs) -> dict[str, th.Tensor]:
    """:return: the observations by key, with the keys of :func:`as_space_dict`"""
    return observations if isinstance(observations, dict) else {SINGLE_KEY: observations}


def as_array_dict(observations: NumpyObs) -> dict[str, np.ndarray]:
    """:return: the observations by key, with the keys of :func:`as_space_dict`"""
    return observations if isinstance(observations, dict) else {SINGLE_KEY: observations}


def steps_of(argument: Any) -> Iterator[Any]:
    """:return: the entries of each step of an array (n_steps, ...), a list, or a dict of arrays (dicts in this case)"""
    if not isinstance(argument, dict):
        return iter(argument)
    n_steps = len(next(iter(argument.values())))
    return ({key: values[step] for key, values in argument.items()} for step in range(n_steps))


def class_counts(space: spaces.Space) -> list[int] | None:
    """
    :param space: observation space of one key, or an action space
    :return: number of classes of each element, flattened, or None for a Box
    :raises ValueError: if the space is not supported
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.flatten()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    if isinstance(space, spaces.Box):
        return None
    raise ValueError(f"The space {space} is not supported: use Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these")


def one_hot_groups(indices: th.Tensor, sizes: list[int]) -> th.Tensor:
    """
    :param indices: class indices (..., S)
    :param sizes: number of classes of each group
    :return: concatenated one-hots of all groups (..., sum(sizes)), float32
    """
    if len(set(sizes)) == 1:
        return one_hot(indices, sizes[0]).flatten(-2)  # (..., S * K)
    return th.cat([one_hot(indices[..., i], size) for i, size in enumerate(sizes)], dim=-1)


def class_starts(space: spaces.Space) -> tuple[int, ...]:
    """:return: the first class of each element of a discrete space; empty if all are 0"""
    starts = tuple(np.asarray(getattr(space, "start", 0)).reshape(-1).tolist())
    return starts if any(starts) else ()


def as_rows(observation: th.Tensor) -> th.Tensor:
    """:return: the observation (N, ...) or (N,) as (N, n), also for N = 0"""
    return observation.flatten(1) if observation.dim() > 1 else observation.unsqueeze(1)


def class_indices(observation: th.Tensor, starts: tuple[int, ...]) -> th.Tensor:
    """
    :param observation: observation of a discrete space (N, ...)
    :param starts: from :func:`class_starts`
    :return: class indices starting at zero (N, S)
    """
    indices = as_rows(observation).long()
    return indices - device_constant(starts, indices.device) if starts else indices


def encoded_dim(space: spaces.Space) -> int:
    """:return: width of the encoding of a space: the number of elements of a Box, the width of the one-hots otherwise"""
    sizes = class_counts(space)
    return math.prod(space.shape or ()) if sizes is None else sum(sizes)


def encode_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    Encode actions for the RSSM: one-hots, or values in [-1, 1] for a Box.

    :param actions: class indices or scaled values (..., action_dim), as stored in the replay buffer
    :param space: action space
    :return: (..., A)
    """
    sizes = class_counts(space)
    return actions.float() if sizes is None else one_hot_groups(actions, sizes)


def decode_actions(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    Decode sampled actions for the environment.

    :param actions: class indices, or values that are clipped to [-1, 1] (n, action_dim)
    :param space: action space
    :return: (n, \\*space.shape) in the space's dtype and within its bounds
    """
    actions = actions.reshape(len(actions), *space.shape)  # type: ignore[misc]
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        # In float64, and clipped again, so that rounding cannot leave the bounds.
        unscaled = low + 0.5 * (np.clip(actions.astype(np.float64), -1.0, 1.0) + 1.0) * (high - low)
        if np.issubdtype(space.dtype, np.integer):
            unscaled = np.rint(unscaled)
        return np.clip(unscaled.astype(space.dtype), space.low, space.high)
    return actions.astype(space.dtype)
