"""The environments of this package: SB3's check, and scores of reference policies."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env


@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_pixel_catch(image_size):
    env = gym.make("sb3_dreamer/PixelCatch-v0", image_size=image_size)
    check_env(env.unwrapped)
    returns = {"blind": [], "seeing": []}
    for seed in range(200):
        for player in returns:
            obs, _ = env.reset(seed=seed)
            done, total = False, 0.0
            while not done:
                ball = obs[..., 0].max(0).argmax()
                paddle = obs[..., 1].max(0).argmax()
                action = 1 + int(np.sign(ball - paddle)) if player == "seeing" else 1
                obs, reward, done, truncated, _ = env.step(action)
                assert not truncated
                total += reward
            returns[player].append(total)
    assert np.mean(returns["seeing"]) == 1.0
    assert abs(np.mean(returns["blind"]) + 0.75) < 0.12
    with pytest.raises(ValueError, match="`image_size` must be a multiple of `grid`=8, got 20"):
        gym.make("sb3_dreamer/PixelCatch-v0", image_size=20)


@pytest.mark.parametrize("observations", ["image", "dict"])
def test_pixel_reach(observations):
    env = gym.make("sb3_dreamer/PixelReach-v0", observations=observations)
    check_env(env.unwrapped)
    returns = {"straight": [], "middle": []}
    for seed in range(300):
        for player in returns:
            env.reset(seed=seed)
            world, done, total = env.unwrapped, False, 0.0
            while not done:
                target = world.goal if player == "straight" else np.zeros(2)
                action = np.clip((target - world.point) / world.STEP, -1, 1).astype(np.float32)
                obs, reward, terminated, done, _ = env.step(action)
                assert not terminated
                total += reward
            assert world.steps == 25
            returns[player].append(total)
    assert abs(np.mean(returns["straight"]) + 2.33) < 0.25 and abs(np.mean(returns["middle"]) + 19.4) < 0.8
    image = obs if observations == "image" else obs["image"]
    assert image[..., 0].any() and image[..., 1].any() == (observations == "image")
    if observations == "image":  # the image alone shows the positions of point and goal
        for channel, position in ((0, world.point), (1, world.goal)):
            y, x = np.argwhere(image[..., channel]).mean(0)
            assert np.abs(np.array([x, y]) / 63 * 2 - 1 - position).max() < 0.1
    else:
        np.testing.assert_allclose(obs["goal"], world.goal, rtol=1e-6)
    for bad in (dict(observations="text"), dict(image_size=8)):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be"):
            gym.make("sb3_dreamer/PixelReach-v0", **bad)


@pytest.mark.parametrize("name", ["PixelCatch16", "PixelReachDict", "TMaze10"])
def test_registered_variants(name):
    env = gym.make(f"sb3_dreamer/{name}-v0")
    check_env(env.unwrapped)
    world = env.unwrapped
    option = dict(
        PixelCatch16=lambda: world.observation_space.shape == (16, 16, 3),
        PixelReachDict=lambda: set(world.observation_space.spaces) == {"image", "goal"},
        TMaze10=lambda: world.length == 10,
    )[name]
    assert option()


@pytest.mark.parametrize("name", ["Counter", "PixelCatch", "PixelReach", "TMaze"])
def test_environments_can_be_built_and_rendered_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_vec_env(f"sb3_dreamer/{name}-v0", 2, seed=0)
        env.reset()
        first = env.render()
        env.step(np.array([env.action_space.sample() for _ in range(2)]))
        assert first.dtype == np.uint8 and first.ndim == 3 and (env.render() != first).any()


def test_counter():
    env = gym.make("sb3_dreamer/Counter-v0", episode_length=3, truncates=True)
    env.reset()
    env.reset()
    for t in (1, 2, 3):
        obs, reward, terminated, truncated, _ = env.step(2)
        assert obs.tolist() == [1, t, 2] and reward == 1000 + t
        assert not terminated and truncated == (t == 3)


@pytest.mark.parametrize("length", [1, 4])
def test_t_maze(length):
    env = gym.make("sb3_dreamer/TMaze-v0", length=length)
    check_env(env.unwrapped)
    returns = {"remembers": [], "always 1": []}
    for seed in range(200):
        for player in returns:
            obs, _ = env.reset(seed=seed)
            cue, steps, done, total = obs[0], 0, False, 0.0
            assert obs.tolist() == [cue, 0, 1] and abs(cue) == 1
            while not done:
                obs, reward, done, truncated, _ = env.step(int(cue > 0) if player == "remembers" else 1)
                steps += 1
                assert obs.tolist() == [0, steps >= length, 1] and not truncated
                total += reward
            assert steps == length + 1
            returns[player].append(total)
    assert np.mean(returns["remembers"]) == 1.0 and abs(np.mean(returns["always 1"])) < 0.2
    with pytest.raises(ValueError, match="`length` must be at least 1, got 0"):
        gym.make("sb3_dreamer/TMaze-v0", length=0)
