"""
What SB3's file of this name does for observations, here for sequences: which kind of thing a space is, and
how observations and actions are written for the model.
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
    :return: its keys in sorted order; a space that is no Dict stands under the one key ``"obs"``
    """
    if isinstance(space, spaces.Dict):
        return {key: space[key] for key in sorted(space.spaces)}
    return {SINGLE_KEY: space}


def as_tensor_dict(observations: TensorObs) -> dict[str, th.Tensor]:
    """:return: the observations by key, as :func:`as_space_dict` names them"""
    return observations if isinstance(observations, dict) else {SINGLE_KEY: observations}


def as_array_dict(observations: NumpyObs) -> dict[str, np.ndarray]:
    """:return: observations by key, under ``SINGLE_KEY`` where there is only one"""
    return observations if isinstance(observations, dict) else {SINGLE_KEY: observations}


def steps_of(argument: Any) -> Iterator[Any]:
    """:return: one entry per step of an array (n_steps, ...), a list or a dict of arrays; a dict of arrays gives dicts"""
    if not isinstance(argument, dict):
        return iter(argument)
    n_steps = len(next(iter(argument.values())))
    return ({key: values[step] for key, values in argument.items()} for step in range(n_steps))


def class_counts(space: spaces.Space) -> list[int] | None:
    """
    :param space: observation space of one key, or an action space
    :return: classes of each element, flattened, or None for a Box
    :raises ValueError: if the space is none of the supported kinds
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
    :param indices: (..., G) class indices
    :param sizes: classes of each group
    :return: the groups' one-hots one after the other, (..., sum(sizes)) float32
    """
    if len(set(sizes)) == 1:
        return one_hot(indices, sizes[0]).flatten(-2)  # (..., G * K)
    return th.cat([one_hot(indices[..., i], size) for i, size in enumerate(sizes)], dim=-1)


def class_starts(space: spaces.Space) -> tuple[int, ...]:
    """:return: the first class of each element of a discrete space, none if all are 0"""
    starts = tuple(np.asarray(getattr(space, "start", 0)).reshape(-1).tolist())
    return starts if any(starts) else ()


def as_rows(observation: th.Tensor) -> th.Tensor:
    """:return: (N, ...) or (N,) as (N, n), also for N = 0"""
    return observation.flatten(1) if observation.dim() > 1 else observation.unsqueeze(1)


def class_indices(observation: th.Tensor, starts: tuple[int, ...]) -> th.Tensor:
    """
    :param observation: (N, ...) of a discrete space
    :param starts: from :func:`class_starts`
    :return: (N, G), counted from zero
    """
    indices = as_rows(observation).long()
    return indices - device_constant(starts, indices.device) if starts else indices


def encoded_dim(space: spaces.Space) -> int:
    """:return: width of a space written as numbers: one for each element of a Box, one-hots for all others"""
    sizes = class_counts(space)
    return math.prod(space.shape or ()) if sizes is None else sum(sizes)


def encode_actions(actions: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    Write actions as the RSSM reads them: one-hots, or values in [-1, 1] for a Box.

    :param actions: (..., action_dim), class indices or scaled values, as the replay stores them
    :param space: action space
    :return: (..., A)
    """
    sizes = class_counts(space)
    return actions.float() if sizes is None else one_hot_groups(actions, sizes)


def decode_actions(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    Write sampled actions as the environment reads them.

    :param actions: (n, action_dim), class indices or values of which the part within [-1, 1] is meant
    :param space: action space
    :return: (n, \\*space.shape) in the space's dtype and within its bounds
    """
    actions = actions.reshape(len(actions), *space.shape)  # type: ignore[misc]
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        # In float64 and clipped again: rounding must not leave the bounds.
        unscaled = low + 0.5 * (np.clip(actions.astype(np.float64), -1.0, 1.0) + 1.0) * (high - low)
        if np.issubdtype(space.dtype, np.integer):
            unscaled = np.rint(unscaled)
        return np.clip(unscaled.astype(space.dtype), space.low, space.high)
    return actions.astype(space.dtype)
