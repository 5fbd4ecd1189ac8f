"""Every kind of observation and action space, through learning, acting, saving and loading."""

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dreamer import DreamerV3
from tests.support.envs import QUICK, NoiseEnv, check_whole_cycle
from tests.support.helpers import VECTOR

OBSERVATIONS = {
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "float64": spaces.Box(-5.0, 5.0, (3,), np.float64),
    "float16": spaces.Box(-5.0, 5.0, (3,), np.float16),
    "int8": spaces.Box(-100, 100, (4,), np.int8),
    "int64": spaces.Box(-(10**6), 10**6, (2,), np.int64),
    "uint8_vector": spaces.Box(0, 255, (7,), np.uint8),
    "uint8_matrix": spaces.Box(0, 255, (3, 5), np.uint8),
    "bool": spaces.Box(0, 1, (3,), bool),
    "four_axes": spaces.Box(-1.0, 1.0, (2, 3, 2, 2), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "discrete": spaces.Discrete(6),
    "discrete_start": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 7, 3]),
    "multi_binary": spaces.MultiBinary(5),
    "multi_binary_grid": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict(
        {
            "values": spaces.Box(-1.0, 1.0, (), np.float64),
            "keys": spaces.Discrete(3),
            "a.b": spaces.MultiBinary(2),
            "items": spaces.MultiDiscrete([2, 2]),
            "camera": spaces.Box(0, 255, (1, 16, 24), np.uint8),
            "front": spaces.Box(0, 255, (3, 20, 20), np.uint8),
        }
    ),
}
ACTIONS = {
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([4, 2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "box": spaces.Box(np.array([-1.0, 5.0]), np.array([0.5, 9.0])),
    "box_float32": spaces.Box(-0.1, 0.3, (2, 2), np.float32),
    "box_float16": spaces.Box(-3.0, 7.0, (2,), np.float16),
    "box_int16": spaces.Box(-3, 7, (2,), np.int16),
    "box_uint8": spaces.Box(0, 255, (2,), np.uint8),
}


@pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observations(space, tmp_path):
    keys = dict(vector_keys=["obs"]) if len(space.shape or ()) == 4 else {}  # explicit, to avoid the warning
    model = check_whole_cycle(NoiseEnv(space, spaces.Discrete(2)), tmp_path, policy_kwargs=keys)
    stored = model.replay_buffer.observations
    for key, sub in (space.spaces if isinstance(space, spaces.Dict) else {None: space}).items():
        array = stored if key is None else stored[key]
        assert array.dtype == (np.float32 if sub.dtype == np.float64 else sub.dtype)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_actions(space, tmp_path):
    check_whole_cycle(NoiseEnv(VECTOR, space), tmp_path)


def test_identity_of_stored_and_taken_actions():
    """The environment gets the stored actions, rescaled."""
    space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))
    env = NoiseEnv(VECTOR, space)
    taken, right = [], env.step
    env.step = lambda action: (taken.append(np.array(action)), right(action))[1]
    model = DreamerV3("MlpPolicy", env, seed=0, **QUICK)
    model.learn(30)
    buffer = model.replay_buffer
    rows = ~buffer.is_first[: buffer.size(), 0]
    scaled = buffer.actions[: buffer.size(), 0][rows]
    np.testing.assert_allclose(space.low + (scaled + 1.0) / 2.0 * (space.high - space.low), taken, rtol=1e-5, atol=1e-5)


def test_unsupported_and_nested_spaces():
    nested = spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})})
    with pytest.raises(NotImplementedError, match="ested observation spaces"):
        DreamerV3("MultiInputPolicy", NoiseEnv(nested, spaces.Discrete(2)), **QUICK)
    grid = spaces.MultiDiscrete([[2, 3], [4, 2]])  # as in SB3
    with pytest.raises(ValueError, match=r"MultiDiscrete spaces must have one axis, `obs` has shape \(2, 2\)"):
        DreamerV3("MlpPolicy", NoiseEnv(grid, spaces.Discrete(2)), **QUICK)
    with pytest.raises(ValueError, match=r"MultiDiscrete spaces must have one axis, `action` has shape \(2, 2\)"):
        DreamerV3("MlpPolicy", NoiseEnv(VECTOR, grid), **QUICK)
    with pytest.raises(AssertionError, match="only supports"):
        DreamerV3("MlpPolicy", NoiseEnv(VECTOR, spaces.Tuple([spaces.Discrete(2)])), **QUICK)
