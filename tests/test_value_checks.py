"""Values are checked in `add` of the replay buffer and in `predict`. Invalid values are neither stored nor acted on."""

import copy
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.distributions import TWO_HOT_LIMIT
from sb3_dreamer.common.preprocessing import as_array_dict, as_space_dict
from sb3_dreamer.common.value_checks import ValueCheck
from tests.support.envs import NoiseEnv
from tests.support.helpers import ACTION_SPACES, TINY, counter_model, make_policy

FLOAT64_MAX = np.finfo(np.float64).max


class Step(NamedTuple):
    """Arguments of ``add``."""

    obs: Any
    next_obs: Any
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    infos: list[dict[str, Any]]


# ---- 1,000 generated cases ----

OBSERVATIONS: dict[str, spaces.Space] = {
    "float32": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "float64": spaces.Box(-5.0, 5.0, (2, 2), np.float64),
    "float16": spaces.Box(-5.0, 5.0, (3,), np.float16),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "int16": spaces.Box(-300, 300, (4,), np.int16),
    "codes": spaces.Box(0, 10, (7, 7, 3), np.uint8),
    "picture": spaces.Box(0, 255, (3, 8, 8), np.uint8),
    "mask": spaces.Box(0, 1, (8, 9, 1), np.int8),
    "unit_image": spaces.Box(0.0, 1.0, (8, 8, 3), np.float32),
    "discrete": spaces.Discrete(5),
    "discrete_start": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 7, 3]),
    "multi_binary": spaces.MultiBinary(5),
}
OBSERVATIONS["dict"] = spaces.Dict({key: OBSERVATIONS[key] for key in ("float64", "picture", "discrete", "multi_binary")})
# The value that each corruption writes; None if it does not apply to the space.
VALUES = {
    "nan": lambda space: np.nan,
    "inf": lambda space: -np.inf,
    "overflow": lambda space: FLOAT64_MAX,
    "above": lambda space: highest(space) + 1 if highest(space) is not None else None,
    "below": lambda space: lowest(space) - 1 if lowest(space) is not None else None,
    "fraction": lambda space: lowest(space) + 0.5 if is_whole(space) else None,
}
CORRUPTIONS = [*VALUES, "shape", "batch", "text", "key", "order", "none"]


def is_whole(space: spaces.Space) -> bool:
    return np.dtype(space.dtype).kind in "iu"


def has_bounds(space: spaces.Space) -> bool:
    """Whether values out of bounds are invalid: classes, images, and overflows of the dtype."""
    return not isinstance(space, spaces.Box) or (len(space.shape) == 3 and space.shape[0] != 7)


def lowest(space: spaces.Space) -> float | None:
    if isinstance(space, spaces.Box):
        return float(space.low.min()) if has_bounds(space) else float(np.iinfo(space.dtype).min) if is_whole(space) else None
    return float(np.min(getattr(space, "start", 0)))


def highest(space: spaces.Space) -> float | None:
    if isinstance(space, spaces.Box):
        return float(space.high.max()) if has_bounds(space) else float(np.iinfo(space.dtype).max) if is_whole(space) else None
    n = 2 if isinstance(space, spaces.MultiBinary) else np.max(getattr(space, "nvec", getattr(space, "n", 2)))
    return float(np.min(getattr(space, "start", 0)) + n - 1)


def draw(space: spaces.Space, n_envs: int) -> Any:
    """Valid observations of all environments, stacked as by a VecEnv."""
    if isinstance(space, spaces.Dict):
        return {key: draw(part, n_envs) for key, part in space.spaces.items()}
    return np.stack([np.asarray(space.sample()) for _ in range(n_envs)])


def draw_action(space: spaces.Space, n_envs: int) -> np.ndarray:
    if isinstance(space, spaces.Box):
        return np.random.uniform(-1, 1, (n_envs, *space.shape)).astype(np.float32)
    return draw(space, n_envs)


def corrupt(array: np.ndarray, space: spaces.Space, corruption: str, rng: np.random.Generator) -> Any:
    """:return: the array with one invalid value, or None if the corruption does not apply"""
    if corruption == "shape":
        return np.concatenate([array, array], axis=-1) if array.ndim > 1 else np.zeros((len(array), 2))
    if corruption == "batch":
        return np.concatenate([array, array])
    if corruption == "text":
        return np.full(array.shape, "left")
    value = VALUES[corruption](space)
    if value is None:
        return None
    broken = array.astype(np.float64)
    broken.flat[rng.integers(broken.size)] = value
    return broken


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(OBSERVATIONS)),
    action_kind=st.sampled_from(sorted(ACTION_SPACES)),
    n_envs=st.integers(1, 3),
    place=st.sampled_from(["obs", "next_obs", "action", "reward"]),
    corruption=st.sampled_from(CORRUPTIONS),
    seed=st.integers(0, 2**31),
    n_before=st.integers(0, 3),
)
def test_added_values_are_valid_or_rejected(kind, action_kind, n_envs, place, corruption, seed, n_before):
    rng = np.random.default_rng(seed)
    space, action_space = copy.deepcopy(OBSERVATIONS[kind]), copy.deepcopy(ACTION_SPACES[action_kind])
    np.random.seed(seed)
    space.seed(seed)
    action_space.seed(seed)
    buffer = SequenceReplayBuffer(60, space, action_space, "cpu", n_envs, batch_length=2, latent_shape=(2, 2, 2))

    def step(obs: Any) -> Step:
        infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        reward, done = np.random.normal(size=n_envs).astype(np.float32), np.zeros(n_envs, dtype=bool)
        return Step(obs, draw(space, n_envs), draw_action(action_space, n_envs), reward, done, infos)

    obs, history = draw(space, n_envs), []
    for _ in range(n_before):
        history.append(step(obs))
        buffer.add(*history[-1])
        obs = history[-1].next_obs
    good = step(obs)
    bad = break_step(good, space, action_space, place, corruption, rng)
    if bad is not None:
        before = copy.deepcopy(buffer.__getstate__())
        with pytest.raises(ValueError) as refused, warnings.catch_warnings():
            warnings.simplefilter("error")  # an overflow in a cast would warn
            buffer.add(*bad)
        assert any(f"`{name}`" in str(refused.value) for name in (*as_space_dict(space), "action", "reward")) or (
            "must have the keys" in str(refused.value)
        )
        assert_same(before, buffer.__getstate__())
    if corruption == "order" and n_before:  # another episode follows
        good = step(draw(space, n_envs))
    buffer.add(*good)
    for env in range(n_envs):
        check_rows(buffer, [*history, good], env, is_broken=bool(n_before) and differs(good.obs, obs, env))


def break_step(good: Step, space, action_space, place: str, corruption: str, rng: np.random.Generator) -> Step | None:
    """:return: the step with one invalid value, or None"""
    if corruption in ("none", "order"):
        return None
    array = getattr(good, place)
    if place in ("obs", "next_obs"):
        key = str(rng.choice(sorted(as_space_dict(space))))
        if corruption == "key":
            if not isinstance(array, dict):
                return None
            return good._replace(**{place: {name: value for name, value in array.items() if name != key}})
        part = corrupt(as_array_dict(array)[key], as_space_dict(space)[key], corruption, rng)
        whole = {**array, key: part} if isinstance(array, dict) else part
        return None if part is None else good._replace(**{place: whole})
    if corruption == "key":
        return None
    if place == "reward":
        their = spaces.Box(-np.inf, np.inf, (), np.float32)
    else:
        scaled = spaces.Box(-1.0, 1.0, (8, 8, 1), np.float32)  # bounds that are checked
        their = scaled if isinstance(action_space, spaces.Box) else action_space
    part = corrupt(array, their, corruption, rng)
    return None if part is None else good._replace(**{place: part})


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in ("counts", "actions", "rewards", "is_first", "dones", "timeouts", "_opens_episode"):
        np.testing.assert_array_equal(before[name], after[name])
    for key, array in as_array_dict(before["observations"]).items():
        np.testing.assert_array_equal(array, as_array_dict(after["observations"])[key])


def differs(first: Any, second: Any, env: int) -> bool:
    mine, theirs = as_array_dict(first), as_array_dict(second)
    return any((mine[key][env] != theirs[key][env]).any() for key in mine)


def check_rows(buffer: SequenceReplayBuffer, steps: list[Step], env: int, is_broken: bool) -> None:
    """Every stored value of one environment equals the given one, cast to the stored dtype."""
    rows = [(steps[0].obs, None)] + [(step.next_obs, step) for step in steps]
    if is_broken:
        rows.insert(-1, (steps[-1].obs, None))
    assert buffer.counts[env] == len(rows)
    for k, (obs, step) in enumerate(rows):
        for key, array in as_array_dict(buffer.observations).items():
            given = np.asarray(as_array_dict(obs)[key][env])
            np.testing.assert_array_equal(array[k, env], given.astype(array.dtype).reshape(array[k, env].shape))
        action = np.zeros_like(buffer.actions[k, env]) if step is None else step.action[env].flatten()
        np.testing.assert_array_equal(buffer.actions[k, env], action)
        assert buffer.rewards[k, env] == (0.0 if step is None else step.reward[env])
        assert buffer.is_first[k, env] == (step is None)
        is_cut = is_broken and k == len(rows) - 3
        assert buffer.dones[k, env] == buffer.timeouts[k, env] == is_cut


POLICIES = {kind: make_policy(space, spaces.Discrete(2)) for kind, space in OBSERVATIONS.items() if kind != "codes"}


@pytest.mark.filterwarnings("ignore:`predict` was called again without `state`:UserWarning")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(POLICIES)),
    n=st.integers(0, 3),
    corruption=st.sampled_from(CORRUPTIONS),
    seed=st.integers(0, 2**31),
)
def test_observations_of_predict_are_valid_or_rejected(kind, n, corruption, seed):
    space, policy = copy.deepcopy(OBSERVATIONS[kind]), POLICIES[kind]
    space.seed(seed)
    rng = np.random.default_rng(seed)
    if n == 0:
        empty = {key: np.zeros((0, *part.shape), part.dtype) for key, part in as_space_dict(space).items()}
        actions, state = policy.predict(empty if isinstance(space, spaces.Dict) else empty["obs"])
        assert actions.shape == (0,) and [len(part) for part in state] == [0, 0, 0]
        return
    good = draw(space, n)
    key = str(rng.choice(sorted(as_space_dict(space))))
    if kind == "int16" and corruption in ("above", "below", "fraction"):
        corruption = "none"  # VecNormalize may change a vector to any numbers
    if corruption in ("none", "order", "batch", "key"):
        bad = {name: good[name] for name in good if name != key} if corruption == "key" and isinstance(good, dict) else None
    else:
        part = corrupt(as_array_dict(good)[key], as_space_dict(space)[key], corruption, rng)
        bad = None if part is None else {**good, key: part} if isinstance(good, dict) else part
    if bad is not None:
        with pytest.raises(ValueError):
            policy.predict(bad)
    actions, _ = policy.predict(good, deterministic=True)
    assert actions.shape == (n,)


# ---- cases from bug reports ----


class Sequence(gym.Env):
    """Returns ``inside`` as observation, and ``last`` at the end of an episode of eight steps."""

    def __init__(self, space: spaces.Space, inside: Any, last: Any):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.inside, self.last = inside, last

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.inside, {}

    def step(self, action):
        self.t += 1
        is_over = self.t == 8
        return (self.last if is_over else self.inside), 0.0, is_over, False, {}


def test_a_final_observation_outside_of_its_space_stops_before_it_is_stored():
    env = Sequence(spaces.Discrete(5), 1, last=5)
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    with pytest.raises(ValueError, match=r"`obs` of environment 0 is 5: allowed are whole numbers from 0 to 4"):
        model.learn(500)
    assert model.num_timesteps == 8 and model.replay_buffer.observations[: model.replay_buffer.size()].max() == 1
    env.last = 4
    model.learn(100, reset_num_timesteps=False)  # the model stays usable
    assert model._n_updates > 0


def test_a_sentinel_that_float32_cannot_hold_is_named():
    env = Sequence(spaces.Box(-np.inf, np.inf, (2,), np.float64), np.zeros(2), last=np.array([0.0, FLOAT64_MAX]))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    with pytest.raises(
        ValueError, match=r"`obs`\[1\] of environment 0 is 1\.79\d*e\+308: all values must be finite \(float32"
    ):
        model.learn(500)
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


@pytest.mark.parametrize("bad, match", [(2.0, "is 2.0: .*policy.scale_action"), (np.nan, "is nan: .*policy.scale_action")])
def test_actions_of_a_box_are_scaled_and_finite(bad, match):
    space = spaces.Box(-2.0, 2.0, (1,))
    buffer = SequenceReplayBuffer(60, spaces.Box(-1.0, 1.0, (2,)), space, "cpu", 1, batch_length=2, latent_shape=(2, 2, 2))
    arguments = np.zeros((1, 2)), np.ones((1, 2)), np.array([[bad]]), np.zeros(1), np.zeros(1), [{}]
    with pytest.raises(ValueError, match=match):
        buffer.add(*arguments)
    assert buffer.size() == 0


def test_steps_out_of_order_start_new_episodes():
    buffer = SequenceReplayBuffer(
        60, spaces.Discrete(100), spaces.Discrete(2), "cpu", 1, batch_length=2, latent_shape=(2, 2, 2)
    )
    for start in (10, 50, 30):
        for t in range(start, start + 3):
            buffer.add(np.array([t]), np.array([t + 1]), np.array([1]), np.zeros(1), np.zeros(1), [{}])
    rows = [10, 11, 12, 13, 50, 51, 52, 53, 30, 31, 32, 33]
    assert buffer.observations[:12].flatten().tolist() == rows
    assert [int(row) for row in np.array(rows)[buffer.is_first[:12, 0]]] == [10, 50, 30]
    assert [int(row) for row in np.array(rows)[buffer.timeouts[:12, 0]]] == [13, 53]
    assert (buffer.timeouts == buffer.dones).all()


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("infos", [[[{}]] * 3, [{}] * 3, [[{"TimeLimit.truncated": np.array([False])}]] * 3])
def test_extend_accepts_arguments_of_sb3(infos, as_dict):
    box = spaces.Box(-1.0, 5.0, (2,), np.float32)
    space = spaces.Dict({"a": box}) if as_dict else box
    by_extend, by_add = (
        SequenceReplayBuffer(60, space, spaces.Discrete(2), "cpu", 1, batch_length=2, latent_shape=(2, 2, 2)) for _ in range(2)
    )
    path = np.arange(8, dtype=np.float32).reshape(4, 1, 2) / 2
    obs, next_obs = ({"a": rows} if as_dict else rows for rows in (path[:-1], path[1:]))
    actions, rewards, dones = np.array([[1], [0], [1]]), np.ones((3, 1)), np.array([[False], [False], [True]])
    by_extend.extend(obs, next_obs, actions, rewards, dones, infos)
    for t in range(3):
        step = ({"a": rows[t]} if as_dict else rows[t] for rows in (path[:-1], path[1:]))
        by_add.add(*step, actions[t], rewards[t], dones[t], [{}])
    assert by_extend.size() == 4
    assert_same(by_extend.__getstate__(), by_add.__getstate__())


def test_reused_observation_arrays_do_not_start_an_episode():
    """Some VecEnvs return the same array at each step."""

    class SameArray(DummyVecEnv):
        def _obs_from_buf(self):
            return self.buf_obs[None]

    env = SameArray([lambda: NoiseEnv(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2))])
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY).learn(40)
    buffer = model.replay_buffer
    assert buffer.is_first.sum() == buffer.dones.sum() + int(not buffer.dones[buffer.size() - 1, 0])


def test_a_reward_beyond_the_two_hot_range_warns_once():
    class Rich(NoiseEnv):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return (obs, 1e9, *rest)

    def model(wrap):
        return DreamerV3(
            "MlpPolicy", wrap(DummyVecEnv([lambda: Rich(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2))])), seed=0, **TINY
        )

    with pytest.warns(UserWarning, match=r"A reward of size 1e\+09 lies outside of \+-4\.85e\+08") as warned:
        model(lambda env: env).learn(60)
    assert len([w for w in warned if "two-hot" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(lambda env: VecNormalize(env, norm_obs=False)).learn(60)  # the model sees small rewards
    assert TWO_HOT_LIMIT == pytest.approx(4.85e8, rel=1e-3)


@pytest.mark.parametrize(
    "space, match",
    [
        (spaces.Box(0, 1, (0,), np.float32), r"must hold at least one number, `obs` is Box\("),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 1, (2, 0), np.float32)}), "`b` is Box"),
        (spaces.Dict({}), "at least one key"),
    ],
    ids=str,
)
def test_spaces_without_a_number(space, match):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=match):
        DreamerV3(policy, NoiseEnv(space, spaces.Discrete(2)), **TINY)


def test_returns_beyond_the_two_hot_range_warn_once():
    model = counter_model().learn(60)
    with th.no_grad():  # as after 15 rewards of 1e9
        model.policy.return_normalizer.high.fill_(5e9)
    with pytest.warns(UserWarning, match=r"A return of size .*e\+09 lies outside of \+-4\.85e\+08") as warned:
        for _ in range(3):
            model.train(1)
            model.dump_logs()
    assert len(warned) == 1


def test_predict_names_the_value():
    model = counter_model()
    obs = np.zeros((3, 3), np.float32)
    obs[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"`obs`\[2\] of environment 1 is nan: all values must be finite"):
        model.predict(obs)
    actions, state = model.predict(np.zeros((0, 3), np.float32), episode_start=np.zeros(0))
    assert actions.shape == (0,) and all(len(part) == 0 for part in state)


@pytest.mark.parametrize("dtype, low, high", [(np.uint8, 0, 255), (np.int32, -9, 9), (np.float64, -5, 5)])
def test_a_normalised_vector_is_a_vector_of_any_numbers(dtype, low, high):
    """VecNormalize changes integers to floats, to which the bounds do not apply."""
    env = VecNormalize(DummyVecEnv([lambda: NoiseEnv(spaces.Box(low, high, (12,), dtype), spaces.Discrete(2))]))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY).learn(60)
    assert model._n_updates > 0 and model.replay_buffer.observations.dtype in (dtype, np.float32)


def test_overflowing_sums_are_valid():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype, value in ((np.float16, 6e4), (np.float32, 3e38)):
            check = ValueCheck("obs", spaces.Box(-np.inf, np.inf, (50,), dtype))
            assert check(np.full((1, 50), value, dtype), 1).max() == dtype(value)


def test_an_image_under_vec_normalize_that_normalises_rewards_only():
    """SB3 wraps it in VecTransposeImage, also without a Dict."""
    space = spaces.Box(0, 255, (16, 20, 3), np.uint8)

    def learn(wrap):
        np.random.seed(0)
        env = wrap(DummyVecEnv([lambda: NoiseEnv(space, spaces.Discrete(2))]))
        return DreamerV3("CnnPolicy", env, seed=0, **{**TINY, "learning_starts": 59}).learn(60)

    normalised, raw = learn(lambda env: VecNormalize(env, norm_obs=False)), learn(lambda env: env)
    assert raw.replay_buffer.dones.sum() > 1
    np.testing.assert_array_equal(normalised.replay_buffer.observations, raw.replay_buffer.observations)
