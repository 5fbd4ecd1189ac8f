"""A worker of ``SubprocVecEnv`` that dies is an error within seconds, and nothing waits for it afterwards."""

import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.workers import WatchedConnection, WorkerError, watch_workers
from tests.support.helpers import TINY


def cart_pole():
    return gym.make("CartPole-v1")


class BrokenEnv(gym.Wrapper):
    def step(self, action):
        raise FloatingPointError("the simulator is gone")


def broken():
    return BrokenEnv(cart_pole())


class Kill(BaseCallback):
    """Kill a worker after some steps, as a user or the system would."""

    def _on_step(self):
        if self.n_calls == 20:
            processes = self.training_env.unwrapped.processes
            os.kill(processes[1].pid, signal.SIGKILL)
            self.at = time.monotonic()
        return True


# With `fork`, SB3 alone waits forever for the dead worker; with `forkserver`, in `close` for the others.
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_a_killed_worker_ends_learn(start_method):
    env = SubprocVecEnv([cart_pole] * 3, start_method=start_method)
    processes = env.processes
    model = DreamerV3("MlpPolicy", VecNormalize(VecMonitor(env)), **TINY)
    callback = Kill()
    message = rf"Worker 1 of SubprocVecEnv \(process {processes[1].pid}\) was killed by SIGKILL, perhaps for memory"
    with pytest.raises(WorkerError, match=message) as error:
        model.learn(300, callback)
    assert time.monotonic() - callback.at < 10
    assert isinstance(error.value, EOFError) and callback.n_calls == 20
    model.env.close()  # returns at once
    assert time.monotonic() - callback.at < 10
    for process in processes:
        process.join(1)
        assert not process.is_alive()
    # The model and its rows are kept: training continues with new environments.
    rows = model.replay_buffer.size()
    assert rows >= 20
    model.set_env(VecNormalize(DummyVecEnv([cart_pole] * 3)))
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps == 120 and model.replay_buffer.size() > rows


def test_a_worker_with_an_error():
    env = watch_workers(SubprocVecEnv([cart_pole, broken], start_method="fork"))
    env.reset()
    with pytest.raises(WorkerError, match=r"Worker 1 of SubprocVecEnv \(process \d+\) ended with exit code 1, after an error"):
        env.step(np.zeros(2, dtype=int))
    env.close()


def test_a_worker_that_is_dead_before_it_is_asked():
    env = watch_workers(SubprocVecEnv([cart_pole] * 2, start_method="fork"))
    env.processes[0].kill()
    env.processes[0].join()
    with pytest.raises(WorkerError, match=r"Worker 0 .* was killed by SIGKILL"):
        env.reset()
    env.close()


def test_workers_that_live(monkeypatch):
    """A slow answer is no error, and the environments do what they did."""
    monkeypatch.setattr("sb3_dreamer.common.workers.POLL_SECONDS", 1e-4)
    plain, env = (SubprocVecEnv([cart_pole] * 2, start_method="fork") for _ in range(2))
    assert watch_workers(watch_workers(env)) is env
    assert all(isinstance(remote, WatchedConnection) for remote in env.remotes)
    assert not isinstance(env.remotes[0]._connection, WatchedConnection)
    for envs in (plain, env):
        envs.seed(0)
    np.testing.assert_array_equal(env.reset(), plain.reset())
    for _ in range(30):
        (ours, *_), (theirs, *_) = (envs.step(np.ones(2, dtype=int)) for envs in (env, plain))
        np.testing.assert_array_equal(ours, theirs)
    assert env.get_attr("spec")[0].id == "CartPole-v1" and env.env_is_wrapped(gym.Wrapper) == [True, True]
    for envs in (plain, env):
        envs.close()
    assert env.closed and not any(process.is_alive() for process in env.processes)


def test_other_environments_are_unchanged():
    env = DummyVecEnv([cart_pole])
    assert watch_workers(env) is env
