"""The wrappers used by presets."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer.common.envs import CounterEnv
from sb3_dreamer.common.wrappers import ActionRepeat, TupleToDict, atari, dm_control_pixels, flappy_bird_frames, remake


@pytest.mark.parametrize("truncates", [False, True])
def test_action_repeat(truncates):
    env = ActionRepeat(CounterEnv(5, truncates), repeat=2)
    env.reset()
    seen = [env.step(1) for _ in range(3)]
    assert [step[0][1] for step in seen] == [2, 4, 5]
    assert [step[1] for step in seen] == [1 + 2, 3 + 4, 5]  # the last repetition ends early
    assert [step[2:4] for step in seen] == [(False, False)] * 2 + [(not truncates, truncates)]
    with pytest.raises(ValueError, match="`repeat` must be at least 1, got 0"):
        ActionRepeat(CounterEnv(), repeat=0)


def test_remake_keeps_the_monitor():
    env = Monitor(gym.make("FrozenLake-v1", is_slippery=True))
    assert env.spec.kwargs["is_slippery"] is True
    again = remake(env, is_slippery=False)
    assert again is env and env.spec.kwargs["is_slippery"] is env.unwrapped.spec.kwargs["is_slippery"] is False
    assert env.spec.max_episode_steps == 100
    env.reset(seed=0)
    for action in (2, 2, 1, 1, 1, 2):  # a safe path to the goal
        _, _, terminated, _, info = env.step(action)
    assert terminated and info["episode"] == {"r": 1.0, "l": 6, "t": info["episode"]["t"]}
    with pytest.raises(ValueError, match=r"must come from `gymnasium\.make`"):
        remake(CounterEnv())


@pytest.mark.parametrize(
    ("kwargs", "shape", "n_actions"),
    [({}, (64, 64, 3), 4), (dict(screen_size=96, grayscale=True, sticky=0.25, full_action_space=True), (96, 96, 1), 18)],
    ids=["100k", "200m"],
)
def test_atari(kwargs, shape, n_actions):
    gym.register_envs(pytest.importorskip("ale_py"))
    env = atari(gym.make("ALE/Breakout-v5"), **kwargs)
    assert env.observation_space == spaces.Box(0, 255, shape, np.uint8) and env.action_space.n == n_actions
    ale = env.unwrapped.ale
    assert ale.getFloat("repeat_action_probability") == pytest.approx(kwargs.get("sticky", 0.0))
    assert env.unwrapped.spec.kwargs["max_num_frames_per_episode"] == 108_000
    env.reset(seed=0)
    before, lives, steps = ale.getEpisodeFrameNumber(), ale.lives(), 0
    assert 1 <= before <= 30  # no-ops
    env.step(1)
    assert ale.getEpisodeFrameNumber() - before == 4
    env.action_space.seed(0)
    done, total = False, 0.0
    while not done:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not truncated
        done, steps, total = terminated, steps + 1, total + reward
    assert ale.lives() == 0 and lives == 5 and steps > 100  # a lost life does not end the episode
    assert float(total).is_integer()  # rewards are the score of the game


def test_atari_truncates_at_its_limit():
    gym.register_envs(pytest.importorskip("ale_py"))
    env = atari(gym.make("ALE/Pong-v5", max_num_frames_per_episode=400))
    env.reset(seed=0)
    for _ in range(120):
        _, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            break
    assert truncated and not terminated


def test_atari_under_make_vec_env():
    """As in RL Zoo: the inner Monitor sees the whole episode, in frames, and the limit is a truncation."""
    gym.register_envs(pytest.importorskip("ale_py"))
    limit = dict(max_num_frames_per_episode=400)
    env = make_vec_env("ALE/Boxing-v5", 1, seed=0, env_kwargs=limit, wrapper_class=atari)
    env.reset()
    assert env.observation_space.shape == (64, 64, 3)
    for _ in range(110):
        _, _, dones, infos = env.step(np.array([1]))
        if dones[0]:
            break
    assert infos[0]["TimeLimit.truncated"] and 395 <= infos[0]["episode"]["l"] <= 401
    env.close()


class TupleEnv(gym.Env):
    observation_space = spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)])
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return (1, np.zeros(2, np.float32)), {}

    def step(self, action):
        return (2, np.ones(2, np.float32)), 0.0, False, False, {}


def test_tuple_to_dict():
    env = TupleToDict(TupleEnv())
    check_env(env)
    obs, _ = env.reset()
    assert obs["0"] == 1 and obs["1"].tolist() == [0, 0]
    assert list(env.observation_space) == ["0", "1"]
    with pytest.raises(ValueError, match="`TupleToDict` needs a Tuple of observations"):
        TupleToDict(CounterEnv())


def test_frozen_lakes():
    for size, steps in (("2x2", 100), ("4x4", 100), ("8x8", 200)):
        env = gym.make(f"sb3_dreamer/FrozenLake{size}-v0")
        assert env.observation_space.n == int(size[0]) ** 2 and env.spec.max_episode_steps == steps
        env.reset(seed=0)
        assert env.step(2)[0] == 1  # one step to the right is one step to the right


@pytest.mark.slow
def test_crafter():
    pytest.importorskip("crafter")
    env = gym.make("sb3_dreamer/Crafter-v0")
    check_env(env.unwrapped)
    first, second = (env.reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    env.action_space.seed(0)
    for _ in range(10_001):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            break
    assert terminated == (info["discount"] == 0) and not truncated
    env.unwrapped.crafter._length = 5  # instead of ten thousand
    env.reset()
    flags = [env.step(0)[2:4] for _ in range(5)]
    assert flags == [(False, False)] * 4 + [(False, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "camera"), [("walker-walk", 0), ("quadruped-walk", 2)])
def test_dm_control_pixels(task, camera):
    gym.register_envs(pytest.importorskip("shimmy"))
    env = dm_control_pixels(Monitor(gym.make(f"dm_control/{task}-v0")))
    assert env.unwrapped.spec.kwargs["render_kwargs"] == dict(width=64, height=64, camera_id=camera)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (64, 64, 3) and obs.dtype == np.uint8 and obs.std() > 10
    env.close()


@pytest.mark.slow
def test_flappy_bird():
    pytest.importorskip("flappy_bird_gymnasium")
    env = flappy_bird_frames(gym.make("FlappyBird-v0"))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (64, 64, 3) and obs.dtype == np.uint8 and obs.std() > 10
