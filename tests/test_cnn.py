"""Images of all sizes, channels first or last, stacked, several in a Dict, float."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from sb3_dreamer import DreamerV3
from tests.support.envs import QUICK, NoiseEnv, check_whole_cycle

SHAPES = [
    (36, 36, 3),
    (40, 40, 1),
    (48, 64, 3),
    (84, 84, 4),
    (3, 96, 96),
    (1, 36, 36),
    (16, 16, 12),
    (17, 31, 2),
    (64, 64, 3),
]


def image(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("policy", ["CnnPolicy", "MlpPolicy"])
def test_sizes_and_channel_orders(shape, policy, tmp_path):
    if policy == "MlpPolicy":  # images are recognised with every policy name
        model = check_whole_cycle(NoiseEnv(image(shape), spaces.Discrete(2)), tmp_path)
    else:
        model = DreamerV3(policy, NoiseEnv(image(shape), spaces.Discrete(2)), **QUICK)
    channels = min(shape)
    assert model.observation_space.shape[0] == channels
    assert model.policy.world_model.encoder.mlp is None
    assert model.policy.world_model.encoder.towers[0].tower.key_channels == [channels]


def test_large_image():
    model = DreamerV3("CnnPolicy", NoiseEnv(image((288, 512, 3)), spaces.Discrete(2)), **{**QUICK, "batch_size": 1})
    assert model.learn(16)._n_updates > 0
    tower = model.policy.world_model.encoder.towers[0].tower
    assert (len(tower.channels), tower.coarse_height, tower.coarse_width) == (5, 9, 16)


def test_several_images_in_a_dict(tmp_path):
    space = spaces.Dict({"front": image((48, 64, 3)), "wrist": image((36, 36, 3)), "depth": image((48, 64, 1))})
    model = check_whole_cycle(NoiseEnv(space, spaces.Discrete(2)), tmp_path)
    towers = [encoder.tower.keys for encoder in model.policy.world_model.encoder.towers]
    assert towers == [["depth", "front"], ["wrist"]]


@pytest.mark.parametrize("order", ["first", "last"])
def test_frame_stack(order):
    shape = (1, 40, 40) if order == "first" else (40, 40, 1)
    env = VecFrameStack(DummyVecEnv([lambda: NoiseEnv(image(shape), spaces.Discrete(2))]), 4, order)
    model = DreamerV3("CnnPolicy", env, **QUICK)
    assert model.observation_space.shape == (4, 40, 40)
    assert model.learn(30)._n_updates > 0


def test_transposed_by_hand_and_by_us_are_the_same():
    def env():
        return DummyVecEnv([lambda: NoiseEnv(image((36, 48, 3)), spaces.Discrete(2))])

    by_us, by_hand = (DreamerV3("CnnPolicy", e, seed=0, **QUICK) for e in (env(), VecTransposeImage(env())))
    for model in (by_us, by_hand):
        model.learn(20)
    for p, q in zip(by_us.policy.parameters(), by_hand.policy.parameters(), strict=True):
        assert th.equal(p, q)


def test_float_images(tmp_path):
    env = NoiseEnv(spaces.Box(0.0, 1.0, (3, 36, 36), np.float32), spaces.Discrete(2))
    model = check_whole_cycle(env, tmp_path, policy_kwargs=dict(normalize_images=False))
    assert model.policy.world_model.encoder.mlp is None
    infinite = NoiseEnv(spaces.Box(-np.inf, np.inf, (3, 36, 36), np.float32), spaces.Discrete(2))
    with pytest.raises(AssertionError, match="only with images"):
        DreamerV3("CnnPolicy", infinite, **QUICK)
    with pytest.raises(ValueError, match="bounds of the image `obs` must be finite"):
        DreamerV3("CnnPolicy", infinite, policy_kwargs=dict(normalize_images=False), **QUICK)


def test_pixels_are_scaled_once():
    """The input of the encoder is in [-0.5, 0.5], the target of the decoder in [0, 1], for every dtype in the replay."""
    env = gym.make("sb3_dreamer/PixelCatch-v0", image_size=16)
    model = DreamerV3("CnnPolicy", env, seed=0, **QUICK)
    model.learn(20)
    seen = []
    model.policy.world_model.encoder.towers[0].stages.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = model.replay_buffer.sample(2)
    assert batch.observations.dtype == th.uint8
    model.policy.world_model.encode(batch.observations)
    assert seen[0].min() == -0.5 and seen[0].max() == 0.5
    target = model.policy.world_model.decoder.targets(batch.observations.flatten(0, 1))["obs"]
    assert target.min() == 0.0 and target.max() == 1.0
