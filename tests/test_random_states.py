"""States of the random generators of the process."""

import random

import numpy as np
import torch as th

from sb3_dreamer.common.plain_data import from_plain, to_plain
from sb3_dreamer.common.random_states import get_random_states, set_random_states


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), th.rand(2).tolist()


def test_numbers_are_drawn_again():
    """Also after the states were stored as plain data, and in the middle of a pair of normal numbers."""
    random.gauss(0, 1)
    np.random.normal()
    arrays = []
    plain = to_plain(get_random_states(th.device("cpu")), arrays)
    expected = draw()
    draw()
    set_random_states(from_plain(plain, arrays), th.device("cpu"))
    assert draw() == expected
