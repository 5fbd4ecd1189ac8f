"""Keys of spaces, and conversion of actions for the model and for the environment."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from sb3_dreamer.common import preprocessing as pre
from tests.support.helpers import ACTION_SPACES, VECTOR

# space: classes of each element
COUNTS = [
    (spaces.Discrete(5), [5]),
    (spaces.Discrete(3, start=-1), [3]),
    (spaces.MultiDiscrete([2, 4, 3]), [2, 4, 3]),
    (spaces.MultiDiscrete([[2, 4], [3, 5]]), [2, 4, 3, 5]),
    (spaces.MultiBinary(3), [2, 2, 2]),
    (spaces.MultiBinary([2, 2]), [2, 2, 2, 2]),
    (spaces.Box(-1.0, 1.0, (2, 3)), None),
]


@pytest.mark.parametrize(("space", "counts"), COUNTS)
def test_class_counts_and_width(space, counts):
    assert pre.class_counts(space) == counts
    assert pre.encoded_dim(space) == (6 if counts is None else sum(counts))


def test_unsupported_spaces():
    for space in (spaces.Text(5), spaces.Tuple([spaces.Discrete(2)])):
        with pytest.raises(ValueError, match=r"is not supported: use Box, Discrete, MultiDiscrete, MultiBinary"):
            pre.class_counts(space)


def test_keys_are_sorted_and_a_single_space_has_one():
    space = spaces.Dict({"b": VECTOR, "a": spaces.Discrete(2)})
    space.spaces["B"] = VECTOR
    assert list(pre.as_space_dict(space)) == ["B", "a", "b"] and pre.as_space_dict(VECTOR) == {"obs": VECTOR}
    tensor, array = th.zeros(2), np.zeros(2)
    assert pre.as_tensor_dict(tensor)["obs"] is tensor and pre.as_array_dict(array)["obs"] is array
    for nest, function in (({"a": tensor}, pre.as_tensor_dict), ({"a": array}, pre.as_array_dict)):
        assert function(nest) is nest


def test_steps_of_lists_arrays_and_dicts():
    array = np.arange(6).reshape(3, 2)
    assert [step.tolist() for step in pre.steps_of(array)] == array.tolist()
    assert list(pre.steps_of(["x", "y"])) == ["x", "y"]
    steps = list(pre.steps_of({"a": array, "b": array[:, :1] + 10}))
    assert [(step["a"].tolist(), step["b"].tolist()) for step in steps] == [([0, 1], [10]), ([2, 3], [12]), ([4, 5], [14])]


def test_one_hots_of_groups_are_concatenated():
    actions = th.tensor([[1, 3, 0], [0, 0, 2]])
    expected = th.tensor([[0, 1, 0, 0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 1]]).float()
    encoded = pre.encode_actions(actions, ACTION_SPACES["multi_discrete"])
    assert encoded.dtype == th.float32 and th.equal(encoded, expected)
    binary = pre.encode_actions(th.tensor([[0, 1, 1]], dtype=th.int8), ACTION_SPACES["multi_binary"])
    assert binary.tolist() == [[1, 0, 0, 1, 0, 1]]
    values = th.tensor([[0.5, -1.0]], dtype=th.float64)
    assert pre.encode_actions(values, ACTION_SPACES["box"]).tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([2, 4, 3]),
        spaces.MultiDiscrete([4, 4], dtype=np.int32),
        spaces.MultiBinary(3),
        spaces.MultiBinary([2, 3]),
    ],
    ids=str,
)
def test_discrete_actions_round_trip(space):
    space.seed(0)
    samples = np.stack([space.sample() for _ in range(24)])
    stored = th.as_tensor(samples.reshape(24, -1))  # (24, action_dim), as in the replay buffer
    encoded = pre.encode_actions(stored.unflatten(0, (4, 6)), space)  # with two leading axes
    assert encoded.shape == (4, 6, pre.encoded_dim(space))
    groups = encoded.flatten(0, 1).split(pre.class_counts(space), dim=-1)
    assert all((group.sum(-1) == 1).all() for group in groups)
    back = pre.decode_actions(th.stack([group.argmax(-1) for group in groups], -1).numpy(), space)
    np.testing.assert_array_equal(back, samples)
    assert back.dtype == space.dtype and all(space.contains(action) for action in back)


def test_actions_of_a_box_are_scaled_to_its_bounds():
    space = ACTION_SPACES["box"]  # [-2, 2] and [0, 5]
    scaled = np.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -0.5], [-7.0, 7.0]], np.float32)
    expected = [[-2.0, 0.0], [2.0, 5.0], [0.0, 2.5], [1.0, 1.25], [-2.0, 5.0]]
    np.testing.assert_array_equal(pre.decode_actions(scaled, space), np.array(expected, np.float32))
    # The inverse of scaling in SB3.
    inside = scaled[:4]
    policy = type("Policy", (), {"action_space": space})()
    np.testing.assert_allclose(BasePolicy.scale_action(policy, pre.decode_actions(inside, space)), inside, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_never_leaves_the_bounds(dtype):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(50, 4)).astype(dtype)
    space = spaces.Box(low, (low + rng.uniform(1e-3, 1.0, low.shape)).astype(dtype), dtype=dtype)
    for scaled in (-1.0, 1.0):
        (action,) = pre.decode_actions(np.full((1, 200), scaled, np.float32), space)
        np.testing.assert_array_equal(action, space.low if scaled < 0 else space.high)
        assert space.contains(action)


def test_whole_numbers_are_rounded():
    space = spaces.Box(0, 10, (3,), np.int32)
    actions = pre.decode_actions(np.array([[-1.0, 0.09, 0.11], [1.0, -0.99, 0.0]], np.float32), space)
    assert actions.dtype == np.int32 and actions.tolist() == [[0, 5, 6], [10, 0, 5]]


def test_classes_are_counted_from_zero():
    shifted = spaces.Discrete(3, start=-1)
    assert pre.class_starts(shifted) == (-1,) and pre.class_starts(spaces.Discrete(3)) == ()
    assert pre.class_indices(th.tensor([-1, 0, 1]), pre.class_starts(shifted)).tolist() == [[0], [1], [2]]
    many = spaces.MultiDiscrete([3, 4], start=[1, 0])
    assert pre.class_indices(th.tensor([[1, 3], [3, 0]]), pre.class_starts(many)).tolist() == [[0, 3], [2, 0]]
    assert pre.as_rows(th.zeros(0, 2, 3)).shape == (0, 6) and pre.as_rows(th.zeros(4)).shape == (4, 1)
