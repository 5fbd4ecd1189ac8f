"""Acting: recurrent predict, as in RecurrentPPO."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.dreamerv3.policies import CnnPolicy
from tests.support.helpers import ACTION_SPACES, IMAGE, MIXED, TINY, VECTOR, make_policy, randomize_outputs

ARRAYS = {name: space for name, space in (("vector", VECTOR), ("image", IMAGE), ("dict", MIXED))}


def sample_observation(space: spaces.Space, n: int | None):
    if isinstance(space, spaces.Dict):
        return {key: sample_observation(sub, n) for key, sub in space.spaces.items()}
    return space.sample() if n is None else np.stack([space.sample() for _ in range(n)])


@pytest.mark.parametrize("space", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_actions_belong_to_the_space(space, action_space, deterministic):
    policy = make_policy(space, action_space)
    space.seed(0)
    action, state = policy.predict(sample_observation(space, None), deterministic=deterministic)
    assert action_space.contains(action) and action.dtype == action_space.dtype
    assert [part.shape[0] for part in state] == [1, 1, 1] and all(part.dtype == np.float32 for part in state)
    actions, state = policy.predict(sample_observation(space, 6), None, np.ones(6), deterministic=deterministic)
    assert actions.shape == (6, *action_space.shape)
    assert all(action_space.contains(a) for a in actions)
    again, _ = policy.predict(sample_observation(space, 6), state, np.zeros(6), deterministic=deterministic)
    assert again.shape == actions.shape


def test_box_actions_reach_the_bounds_and_stay_inside():
    space = spaces.Box(np.array([-0.1, 3.3], np.float32), np.array([0.3, 7.7], np.float32))
    policy = make_policy(VECTOR, space)
    actions, _ = policy.predict(np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32))
    assert (actions >= space.low).all() and (actions <= space.high).all()
    assert (actions == space.low).any(0).all() and (actions == space.high).any(0).all()  # clipped samples
    double = make_policy(VECTOR, spaces.Box(-1.0, 1.0, (2,), np.float64))
    assert double.predict(np.zeros(5, np.float32))[0].dtype == np.float64


def test_predict_does_not_touch_its_arguments():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    _, state = policy.predict(np.ones((2, 5), np.float32))
    copies, starts = [part.copy() for part in state], np.array([True, False])
    policy.predict(np.ones((2, 5), np.float32), state, starts)
    for part, copy in zip(state, copies, strict=True):
        np.testing.assert_array_equal(part, copy)
    assert starts.tolist() == [True, False]


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_deterministic_draws_no_global_random_number(action_space):
    policy = make_policy(VECTOR, action_space)
    observation, starts = np.ones((2, 5), np.float32), np.ones(2)
    first, _ = policy.predict(observation, None, starts, deterministic=True)
    torch_state, numpy_state = th.get_rng_state(), np.random.get_state()[1].copy()
    second, _ = policy.predict(observation, None, starts, deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert th.equal(th.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    policy.predict(observation, None, starts)
    assert not th.equal(th.get_rng_state(), torch_state)


def test_errors():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    obs = np.ones((2, 5), np.float32)
    _, state = policy.predict(obs)
    for wrong in ((obs, {}), (obs,)):
        with pytest.raises(ValueError, match=r"passed a tuple to the predict\(\) .* mixing Gym API with SB3 VecEnv API"):
            policy.predict(wrong)
    with pytest.raises(ValueError, match=r"`state` must hold three arrays of 3 rows"):
        policy.predict(np.ones((3, 5), np.float32), state)
    with pytest.raises(ValueError, match=r"`episode_start` must have one entry per observation, got 3 for 2"):
        policy.predict(obs, state, np.zeros(3))
    for part in range(3):
        broken = [array.copy() for array in state]
        broken[part].flat[0] = np.nan
        with pytest.raises(ValueError, match="`state` must be finite"):
            policy.predict(obs, tuple(broken))
    with pytest.raises(
        ValueError, match=r"`state` must hold three arrays of 2 rows, .*: \[\(2, 8\), .* got shapes \[\(2, 7\)"
    ):
        policy.predict(obs, (state[0][:, 1:], *state[1:]))
    for starts in ([np.nan, 0.0], [0.5, 1.0], [2, 0]):
        with pytest.raises(ValueError, match="`episode_start` must hold True or False"):
            policy.predict(obs, state, np.array(starts))


class ExportedStep(th.nn.Module):
    """A policy step with a state."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observation, episode_start, *state):
        actions, next_state = self.policy.step(observation, PolicyState(*state), episode_start, deterministic=True)
        return actions, *next_state


class Exported(th.nn.Module):
    """A policy wrapped for export, as in SB3's docs."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, *observation):
        return self.policy(*observation, deterministic=True)


@pytest.mark.parametrize("space", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_forward_is_the_first_step_of_an_episode(space, action_space):
    policy = make_policy(space, action_space)
    randomize_outputs(policy)
    space.seed(0)
    observation = sample_observation(space, 5)
    tensors, _ = policy.obs_to_tensor(observation)
    actions = policy(tensors, deterministic=True)
    assert actions.shape == (5, *action_space.shape) and not actions.requires_grad
    unscale = policy.unscale_action if isinstance(action_space, spaces.Box) else lambda numbers: numbers
    expected, _ = policy.predict(observation, None, np.ones(5, bool), deterministic=True)
    np.testing.assert_allclose(unscale(actions.numpy()), expected, rtol=1e-6, atol=1e-6)
    sampled = th.stack([policy(tensors).float() for _ in range(20)])
    assert not th.equal(sampled.amin(0), sampled.amax(0))  # without `deterministic` it samples
    if isinstance(action_space, spaces.Box):
        assert sampled.abs().max() == 1.0  # and stays in the range of `unscale_action`


@pytest.mark.filterwarnings("ignore")  # torch warns about Python code in traced functions and recommends `th.export`
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_export(kind, tmp_path):
    """TorchScript, as in SB3's docs, and the export that torch uses for ONNX."""
    policy = make_policy(VECTOR, ACTION_SPACES[kind])
    policy.set_training_mode(False)
    traced = th.jit.trace(Exported(policy), th.zeros(1, 5))
    traced.save(tmp_path / "policy.pt")
    observations = th.randn(7, 5, generator=th.Generator().manual_seed(0))
    assert th.equal(th.jit.load(tmp_path / "policy.pt")(observations), policy(observations, deterministic=True))
    assert th.equal(th.export.export(Exported(policy), (observations,)).module()(observations), traced(observations))
    step, state = th.jit.trace(ExportedStep(policy), (observations, th.ones(7), *policy.initial_state(7))), None
    parts = policy.initial_state(7)
    for t in range(3):
        starts = th.as_tensor([t == 0] * 6 + [True]).float()
        _, *parts = step(observations + t, starts, *parts)
        _, state = policy.predict((observations + t).numpy(), state, starts.numpy(), deterministic=True)
    for part, expected in zip(parts, state, strict=True):
        np.testing.assert_allclose(part.detach(), expected, atol=1e-6)


def test_evaluate_policy_on_model_and_policy():
    model = DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **TINY)
    for agent in (model, model.policy):
        mean, _ = evaluate_policy(agent, make_vec_env("CartPole-v1", 3), n_eval_episodes=5)
        assert 8 <= mean <= 500


def test_ten_observations_on_a_model_of_one_environment():
    model = DreamerV3("MlpPolicy", "CartPole-v1", **TINY)
    actions, _ = model.predict(np.zeros((10, 4), np.float32))
    assert actions.shape == (10,)


def test_cnn_policy_needs_an_image():
    with pytest.raises(AssertionError, match="only with images"):
        CnnPolicy(VECTOR, ACTION_SPACES["discrete"], lambda _: 0.0, model_size="debug")
    with pytest.raises(AssertionError, match="only with images"):
        DreamerV3("CnnPolicy", "CartPole-v1", **TINY)
    assert CnnPolicy(IMAGE, ACTION_SPACES["discrete"], lambda _: 0.0, model_size="debug").world_model.encoder.mlp is None


def test_channels_last_observations_are_transposed():
    env = gym.make("sb3_dreamer/PixelCatch-v0", image_size=16)
    model = DreamerV3("CnnPolicy", env, **TINY)
    assert model.observation_space.shape == (3, 16, 16)
    obs, _ = env.reset(seed=0)
    action, _ = model.predict(obs, deterministic=True)
    same, _ = model.predict(obs.transpose(2, 0, 1), episode_start=np.ones(1), deterministic=True)
    assert action == same and action.shape == ()


def warnings_of(function) -> list[str]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        function()
    return [str(one.message) for one in warned if one.category is UserWarning]


def test_without_a_state_it_warns_once():
    model = DreamerV3("MlpPolicy", "CartPole-v1", **TINY)
    obs = np.zeros(4, np.float32)
    assert warnings_of(lambda: model.predict(obs)) == []
    (message,) = warnings_of(lambda: model.predict(obs, deterministic=True))
    assert "without `state`" in message
    assert message.splitlines()[1].strip().startswith("action, state = model.predict(obs, state=state, episode_start=")
    assert message.splitlines()[2].strip().startswith("obs, reward, episode_start, info = env.step(action)")
    assert warnings_of(lambda: [model.predict(obs) for _ in range(5)]) == []
    other = DreamerV3("MlpPolicy", "CartPole-v1", **TINY).policy
    assert len(warnings_of(lambda: [other.predict(obs) for _ in range(5)])) == 1


def test_loops_that_pass_the_state_on_never_warn():
    env = make_vec_env("CartPole-v1", 2)
    model = DreamerV3("MlpPolicy", env, **TINY)
    obs = np.zeros((2, 4), np.float32)

    def by_state_alone():
        for _ in range(3):  # episodes
            state = None
            for _ in range(3):
                _, state = model.predict(obs, state=state)

    def by_starts_alone():
        for _ in range(3):
            model.predict(obs, episode_start=np.ones(2, bool))

    def as_rl_zoo_does():
        state, starts = None, np.ones(2, bool)
        for _ in range(3):
            _, state = model.predict(obs, state=state, episode_start=starts, deterministic=True)

    def evaluate():
        evaluate_policy(model, env, n_eval_episodes=3, warn=False)

    def learn():
        model.learn(60, callback=EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=10, n_eval_episodes=1, verbose=0))

    for loop in (by_state_alone, by_starts_alone, as_rl_zoo_does, evaluate, learn):
        assert warnings_of(loop) == [], loop.__name__
