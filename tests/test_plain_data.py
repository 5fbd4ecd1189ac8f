"""Nested values as JSON and arrays."""

import json
from collections import OrderedDict, deque
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_dreamer.common.plain_data import NotPlainError, from_plain, to_plain


def there_and_back(value):
    arrays = []
    return from_plain(json.loads(json.dumps(to_plain(value, arrays))), arrays)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2**200,
        1e-300,
        float("inf"),
        "text",
        [1, [2, "a"], {}],
        (1, (2,)),
        {"a": 1, 3: [None], (1, 2): "key"},
        {"array": 3, "dict": []},
        Fraction(7, 3),
        deque([1, 2], maxlen=5),
    ],
)
def test_values(value):
    back = there_and_back(value)
    assert back == value and type(back) is type(value)
    assert getattr(back, "maxlen", None) == getattr(value, "maxlen", None)


def test_arrays_and_tensors():
    value = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": [np.float32(1.5), th.ones(2, dtype=th.float16)]}
    back = there_and_back(value)
    assert back["a"].dtype == np.uint8 and np.array_equal(back["a"], value["a"])
    assert isinstance(back["b"][0], np.float32) and back["b"][0] == 1.5
    assert isinstance(back["b"][1], th.Tensor) and back["b"][1].dtype == th.float16


def test_subclasses_become_plain():
    class Point(NamedTuple):
        x: int
        y: int

    assert there_and_back([Point(1, 2), OrderedDict(a=1)]) == [(1, 2), {"a": 1}]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"a": [1, print]}, r"`value\['a'\]\[1\]` is a builtin_function"),
        (np.array([print]), "`value` is an array of Python objects"),
        ({1}, "`value` is a set"),
    ],
)
def test_other_values_are_refused_by_name(value, name):
    with pytest.raises(NotPlainError, match=name):
        to_plain(value, [])


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown kind 'code'"):
        from_plain({"code": "print()"}, [])


def test_linear_schedule():
    back = there_and_back({"learning_rate": LinearSchedule(1e-3, 0.0, 1.0)})["learning_rate"]
    assert isinstance(back, LinearSchedule) and back(0.25) == pytest.approx(2.5e-4)
