"""``RestartOnException``: an environment that fails is made again, and the replay sees a truncation."""

import logging
import os
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import DtypeObservation, FrameStackObservation, TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_dreamer import DreamerV3
from sb3_dreamer.common import wrappers
from sb3_dreamer.common.envs import CounterEnv
from sb3_dreamer.common.wrappers import ActionRepeat, RestartOnException, atari, make_again
from tests.support.helpers import TINY
from tests.support.replay import stream

ID = "tests/Failing-v0"


class FailingEnv(CounterEnv):
    """
    Fails at some of its steps and resets, which are counted over all instances of the process. It overwrites its observation.
    """

    step_number = reset_number = n_made = n_closed = 0
    bad_steps: tuple[int, ...] = ()
    bad_resets: tuple[int, ...] = ()
    bad_makes: tuple[int, ...] = ()
    error: type[BaseException] = ConnectionError

    def __init__(self, **kwargs):
        FailingEnv.n_made += 1
        if self.n_made in self.bad_makes:
            raise OSError(f"no server for {self.n_made}")
        super().__init__(**kwargs, first_episode=100 * FailingEnv.n_made)
        self.seeds = []
        self.buffer = np.zeros(3, np.float32)

    def reset(self, *, seed=None, options=None):
        FailingEnv.reset_number += 1
        if self.reset_number in self.bad_resets:
            raise self.error(f"reset {self.reset_number}")
        self.seeds.append(seed)
        observation, info = super().reset(seed=seed, options=options)
        self.buffer[:] = observation
        return self.buffer, info

    def step(self, action):
        FailingEnv.step_number += 1
        observation, *rest = super().step(action)
        if self.step_number in self.bad_steps:
            self.buffer[:] = -1  # half a step
            raise self.error(f"step {self.step_number}")
        self.buffer[:] = observation
        return self.buffer, *rest

    def close(self):
        FailingEnv.n_closed += 1
        raise BrokenPipeError("cannot even be closed")


class FailingInWorker(FailingEnv):
    """Class attributes do not reach a worker that was not forked."""

    bad_steps = (10,)


gym.register(ID, FailingEnv, max_episode_steps=50, disable_env_checker=True)
gym.register("tests/FailingInWorker-v0", FailingInWorker)


@pytest.fixture
def failing(monkeypatch):
    """The class, with its counters at 0 and no failures."""
    for name, value in dict(step_number=0, reset_number=0, n_made=0, n_closed=0, error=ConnectionError).items():
        monkeypatch.setattr(FailingEnv, name, value)
    for name in ("bad_steps", "bad_resets", "bad_makes"):
        monkeypatch.setattr(FailingEnv, name, ())
    return FailingEnv


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand, and advanced by waiting."""
    now = SimpleNamespace(time=0.0)

    def sleep(seconds):
        now.time += seconds

    monkeypatch.setattr(wrappers, "time", SimpleNamespace(monotonic=lambda: now.time, sleep=sleep))
    return now


def test_a_failed_step_is_a_truncation(failing, caplog):
    failing.bad_steps = (3,)
    env = RestartOnException(gym.make(ID, episode_length=5))
    first = env.unwrapped
    env.reset(seed=7)
    assert env.step(1)[4] == {}
    last = env.step(2)[0].copy()
    observation, reward, terminated, truncated, info = env.step(3)
    np.testing.assert_array_equal(observation, last)
    assert observation.tolist() == [100, 2, 2] and (reward, terminated, truncated) == (0.0, False, True)
    assert info == {"restart_error": "ConnectionError('step 3')", "restarts": 1} and env.restarts == 1
    assert failing.n_made == 2 and failing.n_closed == 1 and env.unwrapped is not first
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "sb3_dreamer.common.wrappers"
    assert record.getMessage() == "The environment failed and is made again, restart 1: ConnectionError('step 3')"
    # The new one has the same arguments and wrappers, and a seed that follows from the first one.
    assert env.reset()[0].tolist() == [200, 0, -1]
    assert env.unwrapped.episode_length == 5 and env.spec.max_episode_steps == 50 and isinstance(env.env, TimeLimit)
    (seed,) = env.unwrapped.seeds
    assert isinstance(seed, int) and seed != 7
    env.reset()
    assert env.unwrapped.seeds == [seed, None]


def test_a_failed_reset_is_repeated(failing):
    failing.bad_resets = (1, 2, 4)
    env = RestartOnException(gym.make(ID))
    assert env.reset(seed=7)[0].tolist() == [300, 0, -1]
    assert env.unwrapped.seeds == [7] and env.restarts == 2
    env.step(0)
    assert env.reset()[0].tolist() == [400, 0, -1] and env.restarts == 3


def test_restarts_are_limited(failing, clock, caplog):
    failing.bad_steps = tuple(range(1, 100))
    env = RestartOnException(gym.make(ID), max_restarts=2, window=60)
    for seconds in (0, 50, 11, 50):  # never three within a minute
        clock.time += seconds
        env.reset()
        assert env.step(0)[3]
    clock.time += 9
    env.reset()
    with pytest.raises(ConnectionError, match="step 5") as error:
        env.step(0)
    message = "The environment failed after 2 restarts in 60 s (4 in all)"
    assert caplog.records[-1].getMessage() == f"{message}: ConnectionError('step 5')"
    assert getattr(error.value, "__notes__", [message]) == [message]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4 + ["ERROR"]
    never = RestartOnException(gym.make(ID), max_restarts=0)
    never.reset()
    with pytest.raises(ConnectionError):
        never.step(0)


def test_an_environment_that_cannot_be_made_at_once(failing, clock):
    """Each attempt is a restart, and waits."""
    failing.bad_steps, failing.bad_makes = (1,), (2, 3)
    env = RestartOnException(gym.make(ID), wait=20)
    env.reset()
    assert env.step(0)[4] == {"restart_error": "ConnectionError('step 1')", "restarts": 3}
    assert clock.time == 60 and env.reset()[0][0] == 400
    failing.bad_steps, failing.bad_makes = (2,), tuple(range(5, 99))
    with pytest.raises(OSError, match="no server for 11"):  # after seven more restarts
        env.step(0)
    assert env.restarts == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_not_an_error_passes(failing, error):
    failing.bad_steps, failing.error = (1,), error
    env = RestartOnException(gym.make(ID))
    env.reset()
    with pytest.raises(error):
        env.step(0)
    assert env.restarts == 0 and failing.n_made == 1


def test_arguments(failing):
    with pytest.raises(ValueError, match=r"needs `make_env`, unless `gymnasium\.make` has made the environment"):
        RestartOnException(CounterEnv())
    with pytest.raises(ValueError, match=r"No number may be negative, got max_restarts=-1, window=3600\.0, wait=0\.0"):
        RestartOnException(gym.make(ID), max_restarts=-1)
    with pytest.raises(ValueError, match=r"must come from `gymnasium\.make`"):
        make_again(CounterEnv())
    env = RestartOnException(gym.make(ID))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)  # an error of the caller
    failing.bad_steps = (1,)
    env = RestartOnException(gym.make(ID), make_env=lambda: CounterEnv(n_actions=9))
    env.reset()
    with pytest.raises(ValueError, match=r"The new environment has other spaces: .*, Discrete\(9\)"):
        env.step(0)


def test_make_env_and_monitor(failing):
    failing.bad_steps = (3,)
    monitor = Monitor(FailingEnv(), allow_early_resets=False)
    env = RestartOnException(monitor, make_env=lambda: FailingEnv(episode_length=2))
    env.reset()
    for _ in range(3):
        truncated = env.step(0)[3]
    assert truncated and env.env is monitor and monitor.unwrapped.episode_length == 2
    env.reset()
    env.step(0)
    assert env.step(0)[4]["episode"]["l"] == 2 and monitor.get_episode_lengths() == [2]


def test_other_wrappers(failing):
    """Those that gymnasium can make again are made again; others are kept, and wrap the new environment."""
    failing.bad_steps = (3,)
    monitor = Monitor(DtypeObservation(gym.make(ID), np.float64))
    repeat = ActionRepeat(FrameStackObservation(monitor, 2), 2)
    env = RestartOnException(repeat)
    stack = repeat.env
    env.reset()
    env.step(0)
    assert env.step(0)[3]
    assert env.env is repeat and isinstance(repeat.env, FrameStackObservation) and repeat.env is not stack
    assert repeat.env.env is monitor and isinstance(monitor.env, DtypeObservation)
    assert env.unwrapped is monitor.unwrapped and failing.n_made == 2
    assert env.reset()[0].shape == (2, 3) and not env.step(0)[3]


def test_atari_is_made_again(monkeypatch):
    """Its preprocessing holds the emulator."""
    gym.register_envs(pytest.importorskip("ale_py"))
    monitor = Monitor(gym.make("ALE/Pong-v5"))
    env = RestartOnException(atari(monitor, screen_size=32))
    env.reset(seed=0)
    before = env.unwrapped

    def fail(*_):
        raise RuntimeError("the emulator is gone")

    monkeypatch.setattr(before, "step", fail)
    assert env.step(0)[3] and env.unwrapped is not before
    assert env.reset()[0].shape == (32, 32, 3) and env.env.ale is env.unwrapped.ale and env.env.env is monitor
    assert env.step(0)[2:4] == (False, False)


def test_the_replay_holds_a_truncation(failing):
    """Two environments, of which one fails at its 12th step: the 5th of its second episode."""
    failing.bad_steps = (23,)
    env = make_vec_env(ID, 2, wrapper_class=RestartOnException, wrapper_kwargs=dict(max_restarts=1))
    infos = []

    def callback(local, _):
        infos.extend(local["infos"])
        return True

    model = DreamerV3("MlpPolicy", env, **TINY).learn(60, callback)
    cut = [info for info in infos if "restarts" in info]
    assert len(cut) == 1 and cut[0]["TimeLimit.truncated"] and cut[0]["terminal_observation"].tolist()[:2] == [101, 4]
    assert env.get_attr("restarts") == [1, 0] and model._n_updates > 0
    failed, other = (stream(model.replay_buffer, index) for index in range(2))
    (row,) = np.flatnonzero(failed["timeouts"])
    assert failed["dones"][row] and failed["rewards"][row] == 0
    # Rows of the episode: 0, 1, 2, 3, 4, and the fourth again; then the new environment's first one.
    assert failed["observations"][row - 5 : row + 2, :2].tolist() == [[101, i] for i in (0, 1, 2, 3, 4, 4)] + [[300, 0]]
    assert failed["is_first"][row - 5 : row + 2].tolist() == [True] + [False] * 5 + [True]
    assert not other["timeouts"].any()
    assert {info["episode"]["l"] for info in infos if "episode" in info} == {7}  # the cut episode is not counted


def test_in_a_subprocess():
    """Each of two workers fails at its tenth step."""
    make = lambda: RestartOnException(gym.make("tests/FailingInWorker-v0"))  # noqa: E731
    env = SubprocVecEnv([make] * 2, start_method="fork")
    try:
        env.reset()
        for step in range(1, 15):
            _, _, dones, infos = env.step(np.zeros(2, dtype=int))
            assert dones.tolist() == [step in (7, 10)] * 2
            assert [info["TimeLimit.truncated"] for info in infos] == [step == 10] * 2
            assert ["restarts" in info for info in infos] == [step == 10] * 2
        assert env.get_attr("restarts") == [1, 1] and len(set(env.env_method("__str__"))) == 1
        assert os.getpid() not in [process.pid for process in env.processes]
    finally:
        env.close()


def test_yaml(failing, tmp_path):
    """RL Zoo's ``env_wrapper`` around the ``Monitor`` of ``make_vec_env``, alone and after another wrapper."""
    utils = pytest.importorskip("rl_zoo3.utils")
    yaml = pytest.importorskip("yaml")
    text = """
    - sb3_dreamer.common.wrappers.ActionRepeat: {repeat: 2}
    - sb3_dreamer.common.wrappers.RestartOnException: {max_restarts: 3, window: 600}
    """
    alone = utils.get_wrapper_class(yaml.safe_load("env_wrapper: sb3_dreamer.common.wrappers.RestartOnException"))
    both = utils.get_wrapper_class({"env_wrapper": yaml.safe_load(text)})
    for wrapper_class, limit, expected in ((alone, 10, [[101, 2]]), (both, 3, [[301, 2]])):
        failing.step_number, failing.bad_steps = 0, (10,)
        env = make_vec_env(ID, 1, wrapper_class=wrapper_class, monitor_dir=str(tmp_path), vec_env_cls=DummyVecEnv)
        assert env.envs[0].max_restarts == limit
        env.reset()
        cuts = []
        for _ in range(20):
            _, _, dones, infos = env.step(np.zeros(1, dtype=int))
            if infos[0]["TimeLimit.truncated"]:
                assert dones[0]
                cuts.append(infos[0]["terminal_observation"].tolist()[:2])
        assert cuts == expected and env.get_attr("restarts") == [1]
        assert env.env_is_wrapped(Monitor) == [True]
        env.envs[0].get_wrapper_attr("results_writer").close()
    # Both episodes before and after the cut are in the Monitor's file.
    lines = (tmp_path / "0.monitor.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[2:]] == ["7"] * len(lines[2:]) and len(lines) > 4
