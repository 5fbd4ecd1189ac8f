"""Memory of the replay buffer: when it is allocated, its size, and its pickle."""

import copy
import pickle

import numpy as np
import pytest
from gymnasium import spaces

from tests.support.helpers import MIXED
from tests.support.replay import fill, plain_buffer


def test_memory_is_allocated_at_the_first_add_and_warned_of_once(recwarn):
    buffer = plain_buffer(buffer_size=10**13, latent_shape=(4096, 32, 32))
    assert buffer.observations.size == 0 and not recwarn.list
    small = plain_buffer(buffer_size=2000)
    assert small.observations.size == 0
    # bytes of a row: obs 4, action 8, reward 4, four flags, deter 2 * 8, stoch 2
    assert small.nbytes == 2000 * (4 + 8 + 4 + 4 + 16 + 2)
    fill(small, 2)
    assert small.nbytes == sum(array.nbytes for array in small._arrays().values())
    assert not recwarn.list

    buffer._make_arrays_right = buffer._make_arrays
    buffer._make_arrays = lambda rows: buffer._make_arrays_right(min(rows, 10))
    with pytest.warns(UserWarning, match="does not have apparently enough memory") as warned:
        fill(buffer, 3)
    assert len(warned) == 1 and f"{10**13 * (4 + 8 + 4 + 4 + 8192 + 32) / 1e9:.2f}GB" in str(warned[0].message)


def test_pickle_keeps_only_used_rows():
    buffer = plain_buffer(buffer_size=200_000)
    fill(buffer, 20)
    data = pickle.dumps(buffer)
    assert len(data) < 20_000
    for copied in (pickle.loads(data), copy.deepcopy(buffer)):
        for name, array in buffer._arrays().items():
            np.testing.assert_array_equal(copied._arrays()[name], array)
            assert copied._arrays()[name].dtype == array.dtype
        fill(copied, 10, start=20)
        assert copied.counts[0] == 31
    assert pickle.loads(pickle.dumps(plain_buffer())).observations.size == 0


@pytest.mark.parametrize(("classes", "dtype"), [(4, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_latents_are_stored_in_few_bits(classes, dtype):
    buffer = plain_buffer(latent_shape=(8, 2, classes))
    fill(buffer, 1)
    assert buffer.stoch.dtype == dtype and buffer.stoch.shape == (30, 2, 2)
    assert buffer.deter.dtype == np.float16 and buffer.deter.shape == (30, 2, 8)
    assert np.array(classes - 1).astype(dtype) == classes - 1


def test_each_key_has_rows_of_its_shape_and_type():
    buffer = plain_buffer(observation_space=MIXED, action_space=spaces.MultiDiscrete([2, 5]))
    arrays = buffer._make_observations((7, 2))
    for key, space in MIXED.spaces.items():
        shape = space.shape or (1,)
        assert arrays[key].shape == (7, 2, *shape) and arrays[key].dtype == space.dtype, key
    buffer._make_arrays(7)
    assert buffer.actions.shape == (7, 2, 2) and buffer.actions.dtype == np.int64


def test_another_length_keeps_the_newest_rows():
    """Rows 0 to 70 of an environment, of which 30 fit, then 20, then 50."""
    buffer = plain_buffer()
    fill(buffer, 70)
    for size, n_kept in ((20, 20), (50, 20)):
        buffer.resize(size)
        assert buffer.observations.shape == (size, 2, 1) and buffer.size() == n_kept
        rows = np.arange(buffer.counts[0] - n_kept, buffer.counts[0]) % size
        np.testing.assert_array_equal(buffer.observations[rows, :, 0], np.arange(70 - n_kept + 1, 71)[:, None].repeat(2, 1))
        np.testing.assert_array_equal(buffer.rewards[rows, 1], np.arange(70 - n_kept + 1, 71))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_envs", 3),
        ("observation_space", spaces.Discrete(2)),
        ("action_space", spaces.Discrete(6)),
        ("latent_shape", (8, 2, 5)),
        ("replay_context", False),
    ],
)
def test_a_buffer_of_another_model_is_rejected(name, value):
    buffer = plain_buffer()
    fitting = {
        key: getattr(buffer, key) for key in "n_envs observation_space action_space latent_shape replay_context".split()
    }
    buffer.check_fits(**fitting)
    with pytest.raises(ValueError, match=r"The replay buffer holds .* of another .*, the model has "):
        buffer.check_fits(**{**fitting, name: value})
