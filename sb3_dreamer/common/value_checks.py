"""Checks of observations, actions and rewards before they are stored."""

import math
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import maybe_transpose

from sb3_dreamer.common.distributions import TWO_HOT_LIMIT
from sb3_dreamer.common.images import choose_keys
from sb3_dreamer.common.preprocessing import as_array_dict, as_space_dict
from sb3_dreamer.common.type_aliases import NumpyObs

# Tolerated rounding of scaled actions and resized images, as a fraction of the range.
TOLERANCE = 1e-3
# An image whose values stay below this fraction of their range may hold codes.
SMALL_SHARE = 0.1
# Kinds of dtype: float, signed and unsigned integer, bool.
NUMBERS = "fiub"
# Dtypes that SB3 stores with fewer bits.
STORED = {np.dtype(np.float64): np.dtype(np.float32)}


def image_limits(space: spaces.Box, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """:return: lowest and highest value of an image, one number each if they are the same for all pixels"""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    margin = 0.0 if dtype.kind in "iub" else TOLERANCE * (high - low)
    limits = []
    for bound in (low - margin, high + margin):
        is_same = np.ptp(bound) == 0.0  # for all pixels
        limits.append(np.asarray(bound.flat[0] if is_same else bound, dtype=np.uint8 if dtype.kind == "b" else dtype))
    return limits[0], limits[1]


class ValueCheck:
    """
    Checks that all values of a batch are allowed by a space, also in the dtype in which they are stored.

    :param name: name of the values in error messages
    :param space: Box, Discrete, MultiDiscrete or MultiBinary. The bounds of a Box are only checked if it is an image; they are
        ignored otherwise, as in SB3.
    :param is_image: whether the model reads it as an image
    :param bounds: lowest and highest value, replacing those of the space
    :param hint: end of the error message about a value
    """

    def __init__(
        self,
        name: str,
        space: spaces.Space,
        is_image: bool = False,
        bounds: tuple[float, float] | None = None,
        hint: str | None = None,
    ) -> None:
        self.name = name
        self.space = space
        self.shape: tuple[int, ...] = space.shape or ()
        self.core = tuple(length for length in self.shape if length != 1)
        dtype = np.dtype(space.dtype)
        self.dtype = STORED.get(dtype, dtype)
        self.is_whole = self.dtype.kind in "iub"
        low, high, allowed = self._limits(space, is_image, bounds)
        self.has_one_range = bool(np.ptp(low) == 0 and np.ptp(high) == 0)
        # Comparisons with Python numbers are faster.
        self.low: Any
        self.high: Any
        self.low, self.high = (low.flat[0].item(), high.flat[0].item()) if self.has_one_range else (low, high)
        self.hint = hint or allowed
        self.is_unbounded = isinstance(space, spaces.Box) and self.dtype.kind == "f" and bounds is None and not is_image
        # No check is needed if all values of the dtype are allowed.
        info = np.iinfo(self.dtype) if self.dtype.kind in "iu" else None
        self.is_free = info is not None and bool(np.all(self.low <= info.min) and np.all(self.high >= info.max))

    def _limits(
        self, space: spaces.Space, is_image: bool, bounds: tuple[float, float] | None
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """:return: lowest and highest value of each element, and a description of the allowed values"""
        if isinstance(space, spaces.Box):
            if bounds is not None:
                low, high = (np.asarray(bound, dtype=self.dtype) for bound in bounds)
            elif is_image:
                low, high = image_limits(space, self.dtype)
            elif self.dtype.kind == "f":
                largest = np.asarray(np.finfo(self.dtype).max)
                return -largest, largest, f"all values must be finite ({self.dtype} is stored: at most {largest:.2g})"
            else:
                info = np.iinfo(self.dtype) if self.dtype.kind in "iu" else None
                low, high = np.asarray(info.min if info else 0), np.asarray(info.max if info else 1)
            kind = "whole numbers" if self.is_whole else "values"
            return low, high, f"allowed are {kind} from {low.min():.6g} to {high.max():.6g}"
        first = np.asarray(getattr(space, "start", 0), dtype=np.int64)
        n_classes = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", None))
        last = first + np.asarray(n_classes, dtype=np.int64) - 1
        return first, last, f"allowed are whole numbers from {first.min()} to {last.max()}, the space is {space}"

    def rows(self, values: np.ndarray, n_rows: int) -> np.ndarray:
        """
        :param values: (n_rows, \\*shape), axes of length 1 may be missing
        :param n_rows: number of rows of the batch
        :return: the values as an array (n_rows, \\*shape)
        :raises ValueError: if they have another shape
        """
        array = np.asarray(values)
        if array.dtype.kind not in NUMBERS:
            raise ValueError(f"`{self.name}` must hold numbers, got an array of {array.dtype}")
        if array.shape != (n_rows, *self.shape):
            array = maybe_transpose(array, self.space)  # as SB3 does for images
            if array.size != n_rows * math.prod(self.shape) or self._core_of(array, n_rows) != self.core:
                raise ValueError(
                    f"`{self.name}` must have shape {(n_rows, *self.shape)}, one row per environment, got {array.shape}"
                )
            array = array.reshape(n_rows, *self.shape)
        return array

    def __call__(self, values: np.ndarray, n_rows: int) -> np.ndarray:
        """
        :param values: see :meth:`rows`
        :param n_rows: number of rows of the batch
        :return: the values as an array (n_rows, \\*shape)
        :raises ValueError: if a value or the shape is not allowed
        """
        array = self.rows(values, n_rows)
        if not self._is_plainly_right(array):
            self._refuse_first_wrong(array)
        return array

    def _is_plainly_right(self, array: np.ndarray) -> bool:
        """:return: True if a quick test shows that all values are allowed; False if each value must be checked"""
        if array.size == 0 or (self.is_free and array.dtype == self.dtype):
            return True
        if self.is_unbounded and array.dtype == self.dtype:
            return math.isfinite(np.add.reduce(array, axis=None, dtype=np.float64))
        if array.dtype != self.dtype and not self.is_unbounded:
            return False
        return self.has_one_range and bool(
            np.minimum.reduce(array, axis=None).item() >= self.low and np.maximum.reduce(array, axis=None).item() <= self.high
        )

    def _refuse_first_wrong(self, array: np.ndarray) -> None:
        wide = array.astype(np.float64) if array.dtype.kind == "f" else array  # the limits may not fit into a short dtype
        is_allowed = (wide >= self.low) & (wide <= self.high)
        if self.is_whole and array.dtype.kind == "f":
            is_allowed &= array == np.rint(array)
        if not is_allowed.all():
            env, *where = np.argwhere(~is_allowed)[0]
            element = f"[{', '.join(map(str, where))}]" if len(where) and math.prod(self.shape) > 1 else ""
            raise ValueError(f"`{self.name}`{element} of environment {env} is {array[(env, *where)]}: {self.hint}")

    @staticmethod
    def _core_of(array: np.ndarray, n_rows: int) -> tuple[int, ...]:
        """:return: the shape without its rows and without axes of length 1"""
        shape = [length for length in array.shape if length != 1]
        return tuple(shape if n_rows == 1 else shape[1:])


class ObservationCheck:
    """
    :class:`ValueCheck` for each key of an observation.

    :param space: observation space
    :param image_keys: keys that are images; None: decided by :func:`~sb3_dreamer.common.images.image_layout`
    :param takes_floats: also allow floats in a Box of integers, because VecNormalize returns floats
    """

    def __init__(self, space: spaces.Space, image_keys: Collection[str] | None = None, takes_floats: bool = False) -> None:
        if image_keys is None:
            image_keys = choose_keys(space).layouts
        self.parts = {}
        for key, part in as_space_dict(space).items():
            if takes_floats and isinstance(part, spaces.Box) and key not in image_keys:
                part = spaces.Box(-np.inf, np.inf, part.shape, np.float32)
            self.parts[key] = ValueCheck(key, part, key in image_keys)

    def __call__(self, observations: NumpyObs, n_rows: int) -> dict[str, np.ndarray]:
        """
        :param observations: (n_rows, ...), or a dict of these
        :param n_rows: number of rows of the batch
        :return: arrays by key (n_rows, \\*shape)
        :raises ValueError: if a key is missing or a value is not allowed
        """
        arrays = self.check_keys(observations)
        return {key: check(arrays[key], n_rows) for key, check in self.parts.items()}

    def rows(self, observations: NumpyObs, n_rows: int) -> dict[str, np.ndarray]:
        """Same as calling the object, but only shapes and keys are checked."""
        arrays = self.check_keys(observations)
        return {key: check.rows(arrays[key], n_rows) for key, check in self.parts.items()}

    def check_keys(self, observations: NumpyObs) -> dict[str, np.ndarray]:
        """
        :return: observations by key
        :raises ValueError: if the keys are not those of the space
        """
        arrays = as_array_dict(observations)
        if arrays.keys() != self.parts.keys():
            raise ValueError(f"The observation must have the keys {list(self.parts)}, got {sorted(arrays)}")
        return arrays

    def check_numbers(self, observations: NumpyObs) -> None:
        """:raises ValueError: if the keys are not those of the space, or an array does not hold numbers"""
        for key, array in self.check_keys(observations).items():
            kind = np.asarray(array).dtype
            if kind.kind not in NUMBERS:
                raise ValueError(f"`{key}` must hold numbers, got an array of {kind}")


def action_check(space: spaces.Space) -> ValueCheck:
    """:return: check of actions as stored in the replay buffer: class indices, or values scaled to [-1, 1] for a Box"""
    if not isinstance(space, spaces.Box):
        return ValueCheck("action", space)
    hint = "actions of a Box are stored scaled to [-1, 1], see `policy.scale_action`"
    scaled = spaces.Box(-1.0, 1.0, (math.prod(space.shape),), np.float32)  # flat, as SB3 stores them
    return ValueCheck("action", scaled, bounds=(-1.0 - TOLERANCE, 1.0 + TOLERANCE), hint=hint)


def reward_check() -> ValueCheck:
    """:return: check of rewards, one number per environment"""
    return ValueCheck("reward", spaces.Box(-np.inf, np.inf, (), np.float32))


class RangeCheck:
    """
    Warn once about values outside of the range of the two-hot reward and value heads (symexp(20)).

    :param name: name of the value in the warning
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.has_warned = False

    def __call__(self, values: np.ndarray) -> None:
        """
        Warn at the first value out of range.

        :param values: values of any shape
        """
        largest = float(np.abs(values).max(initial=0.0))
        if largest > TWO_HOT_LIMIT and not self.has_warned:
            self.has_warned = True
            warnings.warn(
                f"A {self.name} of size {largest:.3g} lies outside of +-{TWO_HOT_LIMIT:.3g}, the range of the two-hot reward "
                "and value heads, so it is clipped to that bound: scale the rewards down, for instance by VecNormalize"
            )


def warn_if_codes(key: str, space: spaces.Box, rows: np.ndarray, n_envs: int) -> None:
    """
    Warn about an image whose values use a small part of their range, because they may be codes instead of brightness.

    :param key: key of the observation
    :param space: space of the key
    :param rows: observations so far (n, n_envs, ...)
    :param n_envs: number of environments
    """
    low, high, largest = float(space.low.min()), float(space.high.max()), float(rows.max())
    if largest - low < SMALL_SHARE * (high - low):
        warnings.warn(
            f"The image `{key}` reached no value above {largest:g} in its first {len(rows) * n_envs:,} rows, its space allows "
            f"{low:g} to {high:g}. Object codes (as in MiniGrid) are hard to learn as brightness: convert them to classes "
            "with sb3_dreamer.common.wrappers.CodesToClasses, or render an image. Brightness needs a space with its true "
            "bounds."
        )
