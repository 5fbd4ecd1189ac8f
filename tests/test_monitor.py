"""Monitor, VecMonitor and similar wrappers: their statistics equal the collected data."""

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped, make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.results_plotter import X_TIMESTEPS, ts2xy
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecMonitor

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.envs import CounterEnv
from tests.support.helpers import COUNTERS, TINY


def counter_return(episode: int, length: int) -> float:
    return 1000.0 * episode * length + length * (length + 1) / 2


def test_a_bare_environment_is_monitored():
    model = DreamerV3("MlpPolicy", CounterEnv(5), seed=0, **{**TINY, "learning_starts": 12})
    assert is_wrapped(model.env.envs[0], Monitor)
    model.learn(20)
    assert [info["r"] for info in model.ep_info_buffer] == [counter_return(episode, 5) for episode in range(4)]
    assert [info["l"] for info in model.ep_info_buffer] == [5] * 4


def test_monitor_files(tmp_path):
    env = make_vec_env("CartPole-v1", 2, seed=0, monitor_dir=str(tmp_path))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    model.learn(200)
    env.close()
    table = load_results(str(tmp_path))
    x, y = ts2xy(table, X_TIMESTEPS)
    assert len(table) == len(model.ep_info_buffer) > 3
    assert sorted(table.r) == sorted(info["r"] for info in model.ep_info_buffer)
    assert x[-1] == table.l.sum() <= 200 and (y == table.r).all()
    buffer = model.replay_buffer
    ends = buffer.dones[: buffer.size()] == 1
    assert ends.sum() == len(table)
    # Rewards of all finished episodes, from the file and from the buffer.
    finished = sum(buffer.rewards[: np.flatnonzero(ends[:, i])[-1] + 1, i].sum() for i in range(2) if ends[:, i].any())
    assert finished == table.r.sum()


def test_vec_monitor(tmp_path):
    make = [lambda counter=counter: CounterEnv(counter[0], counter[1], first_episode=counter[2]) for counter in COUNTERS]
    env = VecMonitor(DummyVecEnv(make), str(tmp_path / "monitor.csv"))
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    model.learn(3 * 40)
    env.close()
    table = load_results(str(tmp_path))
    expected = [counter_return(first + episode, length) for length, _, first in COUNTERS for episode in range(40 // length)]
    assert sorted(table.r) == sorted(expected)


def test_record_episode_statistics_of_gymnasium():
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("sb3_dreamer/Counter-v0"))
    model = DreamerV3("MlpPolicy", env, seed=0, **{**TINY, "learning_starts": 12})
    model.learn(21)
    assert list(env.return_queue) == [counter_return(episode, 7) for episode in range(3)]


def test_vec_check_nan():
    env = VecCheckNan(make_vec_env("Pendulum-v1", 2), raise_exception=True)
    assert DreamerV3("MlpPolicy", env, seed=0, **TINY).learn(60)._n_updates > 0


def test_evaluation_counts_whole_episodes():
    env = make_vec_env("sb3_dreamer/Counter-v0", 3)
    model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=7, return_episode_rewards=True)
    assert lengths == [7] * 7 and len(returns) == 7
