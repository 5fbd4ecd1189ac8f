"""Nested Python values as JSON and arrays, so that a file of them is read without pickle."""

from collections import deque
from fractions import Fraction
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import LinearSchedule

# Types that JSON holds as they are.
SIMPLE = (bool, int, float, str, type(None))
ALLOWED = "numbers, strings, arrays, tensors, linear schedules, and lists, tuples, dicts and deques of these"


class NotPlainError(TypeError):
    """A value that cannot be stored as plain data."""


def to_plain(value: Any, arrays: list[np.ndarray], name: str = "value") -> Any:
    """
    :param value: numbers, strings, arrays, tensors, SB3's ``LinearSchedule``, and lists, tuples, dicts and deques of these
    :param arrays: the arrays of the value are appended
    :param name: of the value, for the error
    :return: the same for JSON, with ``{"array": i}`` in place of ``arrays[i]``
    :raises NotPlainError: if the value contains anything else
    """
    if type(value) in SIMPLE:
        return value
    if isinstance(value, np.ndarray | np.generic | th.Tensor):
        return _array_to_plain(value, arrays, name)
    if isinstance(value, Fraction):
        return {"fraction": str(value)}
    if type(value) is LinearSchedule:
        return {"linear_schedule": [value.start, value.end, value.end_fraction]}
    if isinstance(value, dict):
        return {
            "dict": [[to_plain(part, arrays, f"{name}[{key!r}]") for part in (key, entry)] for key, entry in value.items()]
        }
    if isinstance(value, list | tuple | deque):
        parts = [to_plain(part, arrays, f"{name}[{i}]") for i, part in enumerate(value)]
        if isinstance(value, deque):
            return {"deque": parts, "maxlen": value.maxlen}
        return parts if isinstance(value, list) else {"tuple": parts}
    raise NotPlainError(f"`{name}` is a {type(value).__name__}, but only {ALLOWED} can be stored")


def is_plain(value: Any) -> bool:
    """:return: whether :func:`to_plain` accepts a value"""
    try:
        to_plain(value, [])
    except NotPlainError:
        return False
    return True


def _array_to_plain(value: np.ndarray | np.generic | th.Tensor, arrays: list[np.ndarray], name: str) -> dict[str, int]:
    if isinstance(value, th.Tensor):
        kind, array = "tensor", value.detach().cpu().numpy()
    else:
        kind, array = ("array" if isinstance(value, np.ndarray) else "scalar"), np.array(value)
    if array.dtype.hasobject:
        raise NotPlainError(f"`{name}` is an array of Python objects, but only {ALLOWED} can be stored")
    arrays.append(array)
    return {kind: len(arrays) - 1}


def from_plain(plain: Any, arrays: list[np.ndarray]) -> Any:
    """
    :param plain: from :func:`to_plain`
    :param arrays: the arrays
    :return: the value; tensors are on the CPU
    :raises ValueError: if it is not from :func:`to_plain`
    """
    if isinstance(plain, SIMPLE):
        return plain
    if isinstance(plain, list):
        return [from_plain(part, arrays) for part in plain]
    kind, content = next(iter(plain.items()))
    match kind:
        case "array":
            return arrays[content]
        case "scalar":
            return arrays[content][()]
        case "tensor":
            return th.from_numpy(arrays[content].copy())
        case "fraction":
            return Fraction(content)
        case "linear_schedule":
            return LinearSchedule(*content)
        case "dict":
            return {from_plain(key, arrays): from_plain(entry, arrays) for key, entry in content}
        case "deque":
            return deque((from_plain(part, arrays) for part in content), maxlen=plain["maxlen"])
        case "tuple":
            return tuple(from_plain(part, arrays) for part in content)
    raise ValueError(f"unknown kind {kind!r} of data")
