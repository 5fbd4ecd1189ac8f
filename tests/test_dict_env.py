"""Dict observations: images in both channel orders next to vectors, under every wrapper, in processes, with goals."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from sb3_dreamer import DreamerV3
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY

QUICK = {**TINY, "learning_starts": 10, "batch_length": 6, "training_ratio": 4}


def camera_and_joints(channels_last: bool, vectors_only: bool = False) -> spaces.Dict:
    parts: dict[str, spaces.Space] = {
        "joints": spaces.Box(-3.0, 3.0, (4,), np.float32),
        "gripper": spaces.Discrete(3),
        "switches": spaces.MultiBinary(2),
        "buttons": spaces.MultiDiscrete([3, 2]),
    }
    if not vectors_only:
        parts["camera"] = spaces.Box(0, 255, (24, 32, 3) if channels_last else (3, 24, 32), np.uint8)
    return spaces.Dict(parts)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=["discrete", "box"])
def test_spaces(channels_last, action_space):
    env = NoiseEnv(camera_and_joints(channels_last), action_space)
    model = DreamerV3("MultiInputPolicy", env, seed=0, **QUICK)
    assert model.observation_space["camera"].shape == (3, 24, 32)
    assert model.learn(40)._n_updates > 0
    evaluate_policy(model, model.env, n_eval_episodes=2, warn=False)
    obs, _ = env.reset(seed=0)
    assert action_space.contains(model.predict(obs, deterministic=True)[0])


def test_the_environment_that_sb3_documents():
    env = SimpleMultiObsEnv(random_start=False)
    check_env(env)
    model = DreamerV3("MultiInputPolicy", make_vec_env(lambda: SimpleMultiObsEnv(random_start=False), 2), seed=0, **QUICK)
    assert model.learn(60)._n_updates > 0


@pytest.mark.parametrize("continuous", [False, True])
def test_goal_environments_need_no_her(continuous):
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=continuous), 2)
    model = DreamerV3("MultiInputPolicy", env, seed=0, **QUICK)
    assert model.learn(60)._n_updates > 0
    assert set(model.replay_buffer.observations) == {"observation", "achieved_goal", "desired_goal"}


def test_processes():
    space = camera_and_joints(channels_last=True)
    envs = [lambda: NoiseEnv(space, spaces.Discrete(3))] * 2
    env = SubprocVecEnv(envs, start_method="fork")
    model = DreamerV3("MultiInputPolicy", env, seed=0, **QUICK)
    assert model.learn(40)._n_updates > 0
    env.close()


@pytest.mark.parametrize("channels_last", [False, True])
def test_frame_stack(channels_last):
    parts = camera_and_joints(channels_last).spaces
    space = spaces.Dict({key: parts[key] for key in ("camera", "joints")})
    order = {"camera": "last" if channels_last else "first", "joints": "last"}
    env = VecFrameStack(DummyVecEnv([lambda: NoiseEnv(space, spaces.Discrete(3))]), 3, order)
    model = DreamerV3("MultiInputPolicy", env, seed=0, **QUICK)
    assert model.observation_space["camera"].shape == (9, 24, 32) and model.observation_space["joints"].shape == (12,)
    assert model.learn(40)._n_updates > 0
    rows = model.replay_buffer.observations["joints"][:20, 0]
    follows = ~model.replay_buffer.is_first[1:20, 0]
    np.testing.assert_array_equal(rows[1:][follows][:, :8], rows[:-1][follows][:, 4:])  # each stack is shifted by one frame


def test_vec_normalize_leaves_the_other_keys_alone():
    space = camera_and_joints(channels_last=True)
    transposed = VecTransposeImage(DummyVecEnv([lambda: NoiseEnv(space, spaces.Discrete(3))]))
    env = VecNormalize(transposed, norm_obs_keys=["joints"], gamma=0.9)
    model = DreamerV3("MultiInputPolicy", env, seed=0, **QUICK)
    assert model.learn(60)._n_updates > 0
    assert set(env.obs_rms) == {"joints"} and env.obs_rms["joints"].count > 60
    np.random.seed(0)
    batch = model.replay_buffer.sample(8, env=env)
    np.random.seed(0)
    model.replay_buffer.set_window(model.batch_length)
    raw = model.replay_buffer.sample(8)
    for key in ("camera", "gripper", "switches", "buttons"):
        np.testing.assert_array_equal(batch.observations[key], raw.observations[key])
    expected = env.normalize_obs({key: value.numpy() for key, value in raw.observations.items()})["joints"]
    np.testing.assert_allclose(batch.observations["joints"], expected, rtol=1e-5)


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["SB3 transposes", "RL Zoo transposes"])
def test_vec_normalize_below_a_transposed_image(is_wrapped):
    """The wrapper order of README and RL Zoo. Rows, terminal ones included, equal those without VecNormalize."""
    space = camera_and_joints(channels_last=True)

    def learn(normalize):
        np.random.seed(0)
        inner = DummyVecEnv([lambda: NoiseEnv(space, spaces.Discrete(3))] * 2)
        env = VecNormalize(inner, norm_obs_keys=["joints"]) if normalize else inner
        env = VecTransposeImage(env) if is_wrapped else env
        return DreamerV3("MultiInputPolicy", env, seed=0, **{**QUICK, "learning_starts": 39}).learn(40)

    normalised, raw = learn(True), learn(False)
    assert isinstance(normalised.get_vec_normalize_env(), VecNormalize)
    assert normalised.replay_buffer.dones.sum() > 2 and normalised.replay_buffer.is_first.sum() > 4
    for key, rows in raw.replay_buffer.observations.items():
        np.testing.assert_allclose(normalised.replay_buffer.observations[key], rows, atol=1e-5)
    normalised.learn(80, reset_num_timesteps=False)
    assert normalised._n_updates > 0
    evaluate_policy(normalised, normalised.get_env(), n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("wrapper", [lambda env: VecFrameStack(env, 2)])
def test_vec_normalize_must_see_what_the_model_sees(wrapper):
    """Otherwise SB3 would store observations from before the wrapper, with a different shape."""
    parts = camera_and_joints(channels_last=True).spaces
    space = spaces.Dict({key: parts[key] for key in ("camera", "joints")})
    inner = DummyVecEnv([lambda: NoiseEnv(space, spaces.Discrete(3))])
    with pytest.raises(ValueError, match="VecNormalize must stand outside of the wrappers that change shapes"):
        DreamerV3("MultiInputPolicy", wrapper(VecNormalize(inner, norm_obs_keys=["joints"])), **QUICK)


def test_extracted_key():
    env = VecExtractDictObs(DummyVecEnv([lambda: NoiseEnv(camera_and_joints(False, True), spaces.Discrete(3))]), "joints")
    model = DreamerV3("MlpPolicy", env, seed=0, **QUICK)
    assert model.learn(40)._n_updates > 0 and model.observation_space.shape == (4,)


def test_a_dict_of_one_key_is_that_key():
    """The same observations in both forms give the same parameters, losses and actions."""

    class InDict(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Dict({"obs": env.observation_space})

        def observation(self, observation):
            return {"obs": observation}

    plain = DreamerV3("MlpPolicy", gym.make("CartPole-v1"), seed=0, **QUICK).learn(60)
    in_dict = DreamerV3("MultiInputPolicy", InDict(gym.make("CartPole-v1")), seed=0, **QUICK).learn(60)
    assert plain._n_updates == in_dict._n_updates > 0
    for p, q in zip(plain.policy.parameters(), in_dict.policy.parameters(), strict=True):
        np.testing.assert_array_equal(p.detach(), q.detach())


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_policy_hint(policy):
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy`"):
        DreamerV3(policy, BitFlippingEnv(n_bits=4), **QUICK)


def test_nested_dicts_and_tuples():
    for inner in (spaces.Dict({"b": spaces.Discrete(2)}), spaces.Tuple([spaces.Discrete(2)])):
        env = NoiseEnv(spaces.Dict({"a": inner}), spaces.Discrete(2))
        with pytest.raises(NotImplementedError, match="Nested observation spaces"):
            DreamerV3("MultiInputPolicy", env, **QUICK)
