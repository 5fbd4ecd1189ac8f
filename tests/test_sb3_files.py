"""Only the main rank writes files of Monitor and SB3's logger, including workers of a ``SubprocVecEnv``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv

folder = Path(sys.argv[1])


def step(env):
    env.reset()
    for _ in range(100):
        if env.step(0)[2]:
            break


if __name__ == "__main__":
    import sb3_dreamer  # on rank 1 this silences the writers; workers do not run this line

    env = Monitor(gym.make("CartPole-v1"), str(folder / "here"))
    step(env)
    assert env.get_episode_lengths() and env.get_episode_rewards()[0] == env.get_episode_lengths()[0]
    env.close()
    logger = configure(str(folder / "log"), ["stdout", "csv", "json", "tensorboard"])
    logger.record("a/b", 1.0)
    logger.dump(1)
    logger.close()
    workers = SubprocVecEnv([lambda: Monitor(gym.make("CartPole-v1"), str(folder / "worker"))], start_method="forkserver")
    workers.reset()
    infos = []
    while not infos:
        infos = [info for info in workers.step([0])[3] if "episode" in info]
    assert infos[0]["episode"]["l"] > 1
    workers.close()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_files_of_a_rank(rank, tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "files"
    script.write_text(SCRIPT)
    folder.mkdir()
    launcher = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29999"}
    environment = {**os.environ, **launcher, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    names = {path.name.split(".")[0] + path.suffix for path in folder.rglob("*") if path.is_file()}
    if rank == 0:
        assert {"here.csv", "worker.csv", "progress.csv", "progress.json"} < names
        assert any(name.startswith("events") for name in names) and "a/" in result.stdout
    else:
        assert names == set() and result.stdout == ""
