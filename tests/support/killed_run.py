"""A training run in a process of its own, which is killed at random moments and resumed."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback
from sb3_dreamer.common.checkpoint import find_checkpoints, open_checkpoint
from tests.support.helpers import counter_envs, counter_model
from tests.support.replay import check_buffer

SAVE_FREQ = 9


def continue_run(path: Path, steps: int, started: Path) -> DreamerV3:
    """Start the run, or continue it from its newest checkpoint, until so many environment steps. Touch a file at the start."""
    is_new = not find_checkpoints(path)
    model = counter_model(buffer_size=300) if is_new else DreamerV3.resume(path, counter_envs())
    callbacks = [DreamerCheckpointCallback(SAVE_FREQ, path), ConvertCallback(lambda *_: started.touch() is None)]
    return model.learn(steps - model.num_timesteps, callback=callbacks, reset_num_timesteps=is_new)


def child(path: Path, steps: int, started: Path) -> None:
    th.set_num_threads(1)
    continue_run(path, steps, started)


def context() -> ForkServerContext:
    """Processes that start in a moment, because the server has imported everything."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["tests.support.killed_run"])
    return forkserver


def start(path: Path, steps: int) -> multiprocessing.Process:
    started = path.with_suffix(".started")
    started.unlink(missing_ok=True)
    process = context().Process(target=child, args=(path, steps, started))
    process.start()
    while not started.exists() and process.is_alive():
        time.sleep(0.005)
    return process


def kill_at_random(path: Path, steps: int, n_kills: int, longest: float, seed: int = 0) -> dict[str, int]:
    """
    Kill a run ``n_kills`` times, at most ``longest`` seconds after its first step since it was started or resumed, then let it
    finish.

    :return: how often a kill came while a checkpoint was written, and how many checkpoints the kills left to resume from
    """
    rng, seen = random.Random(seed), dict(kills=0, while_saving=0, newest=0)
    while seen["kills"] < n_kills:
        process = start(path, steps)
        process.join(rng.uniform(0.0, longest))
        assert process.is_alive() or process.exitcode == 0
        assert process.is_alive(), f"the run finished before the {seen['kills'] + 1}th kill"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen["kills"] += 1
        seen["while_saving"] += any(path.glob("*.unfinished"))
        if find_checkpoints(path):
            check_newest(path, seen)
    process = start(path, steps)
    process.join()
    assert process.exitcode == 0
    check_newest(path, seen)
    assert seen["newest"] >= steps
    return seen


def check_newest(path: Path, seen: dict[str, int]) -> None:
    """The newest checkpoint is complete, holds every row up to its step, and is not older than the one seen before."""
    checkpoint = open_checkpoint(path)
    checkpoint.verify()
    model = DreamerV3.resume(checkpoint.folder, counter_envs())
    assert model.num_timesteps == int(checkpoint.folder.name.split("_")[1]) >= seen["newest"]
    seen["newest"] = model.num_timesteps
    buffer = model.replay_buffer
    # Each step adds one row to each stream, and each episode one for its first observation.
    per_stream = model.num_timesteps // buffer.n_envs
    for env, count in enumerate(buffer.counts):
        length = (7, 11, 13)[env]
        assert count == per_stream + -(-per_stream // length)
    check_buffer(buffer)
