"""Runs that are killed, and runs that are asked to stop."""

import signal
import subprocess
import sys
import time
import warnings
from subprocess import PIPE, STDOUT

import pytest

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.checkpoint import find_checkpoints
from tests.support.helpers import counter_envs
from tests.support.killed_run import kill_at_random
from tests.support.package import ROOT


@pytest.mark.parametrize(
    ("n_kills", "steps"), [(3, 1500), pytest.param(20, 6000, marks=pytest.mark.slow)], ids=["3 kills", "20 kills"]
)
def test_killed_runs_lose_nothing(n_kills, steps, tmp_path):
    seen = kill_at_random(tmp_path / "run", steps, n_kills, longest=0.5)
    assert seen["kills"] == n_kills and seen["newest"] >= steps


SCRIPT = """
import sys
from pathlib import Path
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from stable_baselines3.common.callbacks import ConvertCallback
from tests.support.helpers import counter_model
model = counter_model()
ready = lambda local, _: print("step", local["self"].num_timesteps, flush=True) is None
model.learn(100_000, callback=[DreamerCheckpointCallback(100_000, sys.argv[1]), ConvertCallback(ready)])
print("ended at", model.num_timesteps, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_end_cleanly(number, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=PIPE, stderr=STDOUT, text=True, cwd=ROOT)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("step 30") for line in lines)
    process.send_signal(number)
    rest = list(lines)
    assert process.wait(60) == 0
    assert any(line.startswith(f"{signal.Signals(number).name}: training ends") for line in rest)
    steps = int(rest[-1].removeprefix("ended at "))
    (folder,) = find_checkpoints(tmp_path)
    assert DreamerV3.resume(folder, counter_envs()).num_timesteps == steps


SLOW_SAVE = SCRIPT.replace(
    "model = counter", "import time\nDreamerCheckpointCallback.save = lambda self: time.sleep(60)\nmodel = counter"
)


def test_a_second_signal_ends_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SAVE, str(tmp_path)], stdout=PIPE, stderr=STDOUT, text=True, cwd=ROOT
    )
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("step 30") for line in lines)
    process.send_signal(signal.SIGTERM)
    assert any(line.startswith("SIGTERM: training ends") for line in lines)
    started = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM and time.perf_counter() - started < 20


SUBPROCESSES = """
import os, signal, sys
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.envs import CounterEnv
from tests.support.helpers import TINY

if __name__ == "__main__":
    model = DreamerV3("MlpPolicy", SubprocVecEnv([CounterEnv] * 3, start_method="fork"), seed=0, **TINY)
    ctrl_c = lambda local, _: local["self"].num_timesteps != 30 or os.killpg(0, signal.SIGINT) is None
    model.learn(100_000, callback=[DreamerCheckpointCallback(100_000, sys.argv[1]), ConvertCallback(ctrl_c)])
    print("ended at", model.num_timesteps, flush=True)
"""


def test_ctrl_c_also_reaches_the_processes_of_the_environments(tmp_path):
    """A terminal sends it to all of them. The step fails, and the run is saved without it."""
    result = subprocess.run(
        [sys.executable, "-c", SUBPROCESSES, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    (folder,) = find_checkpoints(tmp_path)
    assert result.stdout.splitlines()[-1] == f"ended at {int(folder.name.split('_')[1])}"
    with warnings.catch_warnings():  # whether a worker or the callback was first
        warnings.simplefilter("ignore")
        resumed = DreamerV3.resume(folder, counter_envs())
    assert 30 <= resumed.num_timesteps <= 36 and (resumed.replay_buffer.counts > 10).all()
