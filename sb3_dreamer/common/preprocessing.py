"""
What SB3's file of this name does for observations, here for sequences: which kind of thing a space is, and
how observations and actions are written for the model.
"""

import math

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_dreamer.common.type_aliases import NumpyObs, TensorObs
from sb3_dreamer.common.utils import device_constant, one_hot

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


def check_finite(name: str, array: np.ndarray) -> None:
    """
    :param name: key of an observation, or ``reward``
    :param array: (n_envs, ...)
    :raises ValueError: names the key and the environment of the first value that is NaN or infinite
    """
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        env, *where = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"`{name}` of environment {env} is {array[(env, *where)]}: all values must be finite")


def is_image(space: spaces.Space, normalize_images: bool = True) -> bool:
    """
    :param space: space of one key
    :param normalize_images: SB3's switch; when False, float boxes of three dimensions are images too
    :return: whether the key is read by convolutions
    """
    return is_image_space(space) or (not normalize_images and is_image_space(space, normalized_image=True))


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


def class_indices(observation: th.Tensor, starts: tuple[int, ...]) -> th.Tensor:
    """
    :param observation: (N, ...) of a discrete space
    :param starts: from :func:`class_starts`
    :return: (N, G), counted from zero
    """
    indices = observation.reshape(observation.shape[0], -1).long()
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
