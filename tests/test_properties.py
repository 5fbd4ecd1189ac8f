"""Random spaces, dtypes, shapes, numbers of environments and episode lengths: no failure and no warning."""

import copy
import io
import tempfile
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.images import image_layout
from sb3_dreamer.common.preprocessing import as_space_dict
from tests.support.envs import policy_name

FLOATS = (np.float16, np.float32, np.float64)
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16)


class LengthsEnv(gym.Env):
    """Random observations. Episodes have the given lengths and are terminated or truncated."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, lengths: list[tuple[int, bool]]):
        self.observation_space, self.action_space, self.lengths = observation_space, action_space, lengths
        self.episode, self.t = -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), (self.action_space, action)
        self.t += 1
        length, is_cut = self.lengths[self.episode % len(self.lengths)]
        is_over = self.t >= length
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, is_over and not is_cut, is_over and is_cut, {}


class ResumableLengthsEnv(LengthsEnv):
    """The random generator of the environment, which a checkpoint has, determines the observations."""

    def sample(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self.sample(), {}

    def step(self, action):
        return self.sample(), *super().step(action)[1:]

    def get_state(self):
        return {"episode": self.episode, "t": self.t}

    def set_state(self, state):
        vars(self).update(state)


@st.composite
def boxes(draw, bounded: bool) -> spaces.Box:
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=4)))
    if bounded and not shape:
        shape = (1,)
    dtype = draw(st.sampled_from(FLOATS + INTEGERS))
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        low = draw(st.integers(max(info.min, -1000), min(info.max, 1000) - 1))
        return spaces.Box(low, draw(st.integers(low + 1, min(info.max, 1001))), shape, dtype)
    low = draw(st.integers(-100, 99))
    kinds = ["both"] if bounded else ["both", "below", "above", "none"]
    kind = draw(st.sampled_from(kinds))
    high = low + draw(st.sampled_from([0.5, 1, 7, 100]))
    return spaces.Box(
        dtype(low if kind in ("both", "below") else -np.inf),
        dtype(high if kind in ("both", "above") else np.inf),
        shape,
        dtype,
    )


@st.composite
def images(draw, channels_last: bool) -> spaces.Box:
    height, width, channels = draw(st.integers(16, 40)), draw(st.integers(16, 40)), draw(st.integers(1, 12))
    if not channels_last and draw(st.integers(0, 4)) == 0:
        return spaces.Box(0.0, draw(st.sampled_from([1.0, 255.0])), (channels, height, width), np.float32)
    return spaces.Box(0, 255, (height, width, channels) if channels_last else (channels, height, width), np.uint8)


def discrete_spaces(for_actions: bool):
    """Discrete actions start at 0, and SB3 requires flat spaces."""
    grids = st.lists(st.integers(1, 3), min_size=1, max_size=3)
    return st.one_of(
        st.builds(spaces.Discrete, st.integers(2, 20), start=st.just(0) if for_actions else st.integers(-3, 3)),
        st.builds(spaces.MultiDiscrete, st.lists(st.integers(2, 7), min_size=1, max_size=4)),
        st.builds(spaces.MultiBinary, st.integers(1, 5) if for_actions else st.one_of(st.integers(1, 5), grids)),
    )


@st.composite
def observation_spaces(draw) -> spaces.Space:
    channels_last = draw(st.booleans())
    part = st.one_of(boxes(bounded=False), discrete_spaces(for_actions=False), images(channels_last))
    if draw(st.booleans()):
        return draw(part)
    return spaces.Dict(draw(st.dictionaries(st.text("abcxyz._ 1", min_size=1, max_size=5), part, min_size=1, max_size=4)))


@st.composite
def cases(draw):
    n_envs = draw(st.integers(1, 3))
    lengths = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=4)
    settings_ = dict(
        batch_size=draw(st.integers(1, 3)),
        batch_length=draw(st.integers(2, 6)),
        imagination_horizon=draw(st.integers(1, 3)),
        replay_context=draw(st.booleans()),
        online_queue=draw(st.booleans()),
        train_freq=draw(st.integers(1, 4)),
        learning_starts=draw(st.sampled_from([0, 5])),
        buffer_size=draw(st.sampled_from([36, 1000])),
        imagine_last=draw(st.sampled_from([0, 2])),
    )
    settings_["training_ratio"] = settings_["batch_size"] * settings_["batch_length"] / 8  # an update in eight steps
    action_space = draw(st.one_of(boxes(bounded=True), discrete_spaces(for_actions=True)))
    observation_space = draw(observation_spaces())
    # Boxes with three axes that are too small for an image are declared vectors, to avoid the warning.
    flat = [key for key, space in as_space_dict(observation_space).items() if isinstance(space, spaces.Box)]
    flat = [key for key in flat if image_layout(as_space_dict(observation_space)[key]) is None]
    settings_["policy_kwargs"] = dict(vector_keys=flat)
    return observation_space, action_space, [draw(lengths) for _ in range(n_envs)], settings_


def check_cycle(case) -> None:
    """Construct, add, sample, at least two updates, predict, save, load."""
    observation_space, action_space, lengths, arguments = case
    envs = [lambda own=own: LengthsEnv(observation_space, action_space, own) for own in lengths]
    model = DreamerV3(policy_name(observation_space), DummyVecEnv(envs), model_size="debug", seed=0, device="cpu", **arguments)
    model.learn(24, log_interval=None)
    assert model._n_updates >= 1
    model.train(2, model.batch_size)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    obs = model.env.reset()
    actions, state = model.predict(obs, deterministic=True)
    assert actions.shape == (len(lengths), *action_space.shape)
    assert all(action_space.contains(action) for action in (actions if action_space.shape else list(actions)))
    file = io.BytesIO()
    model.save(file)
    loaded = DreamerV3.load(file, device="cpu")
    again, same = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(actions, again)
    for part, other in zip(state, same, strict=True):
        np.testing.assert_array_equal(part, other)
    file = io.BytesIO()
    model.save_replay_buffer(file)
    file.seek(0)
    rows = model.replay_buffer.filled.copy()
    model.load_replay_buffer(file)
    np.testing.assert_array_equal(model.replay_buffer.filled, rows)


def check_resume(case) -> None:
    """Save a checkpoint, resume in new environments and go on: the same weights and rows as without the interruption."""
    observation_space, action_space, lengths, arguments = case

    def make(own):  # copies, because spaces hold random generators
        return ResumableLengthsEnv(copy.deepcopy(observation_space), copy.deepcopy(action_space), own)

    def build_env():
        return DummyVecEnv([lambda own=own: make(own) for own in lengths])

    with tempfile.TemporaryDirectory() as folder:
        model = DreamerV3(policy_name(observation_space), build_env(), model_size="debug", seed=0, device="cpu", **arguments)
        model.learn(18, log_interval=None)
        checkpoint, rest = model.save_checkpoint(folder), dict(reset_num_timesteps=False, log_interval=None)
        model.learn(12, **rest)
        resumed = DreamerV3.resume(checkpoint, build_env(), device="cpu").learn(12, **rest)
    assert model._n_updates == resumed._n_updates
    for parameter, other in zip(model.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert th.equal(parameter, other)
    for name, array in model.replay_buffer._arrays().items():
        np.testing.assert_array_equal(array, resumed.replay_buffer._arrays()[name], err_msg=name)


def strictly(case, check=check_cycle) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(case)


# No shrinking, because a case is slow. The same cases are generated each time.
COMMON = dict(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@given(cases())
@settings(max_examples=20, **COMMON)
def test_any_space(case):
    strictly(case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=300, **COMMON)
def test_300_spaces(case):
    strictly(case)


@given(cases())
@settings(max_examples=5, **COMMON)
def test_any_space_is_resumed(case):
    strictly(case, check_resume)


@pytest.mark.slow
@given(cases())
@settings(max_examples=100, **COMMON)
def test_100_spaces_are_resumed(case):
    strictly(case, check_resume)
