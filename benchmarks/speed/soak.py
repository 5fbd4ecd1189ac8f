"""
A long run on one core, with evaluation, checkpoints and a buffer that wraps: does memory grow, do updates become slower?

    python -m benchmarks.speed.soak --minutes 30

Prints a line of JSON every minute, and at the end one with the growth of the memory (over the second half) and of the CPU time
per update (medians of the second and of the last fifth of the lines).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.speed.checkpoints import status
from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback

ROWS = 4000  # of the replay buffer


class Timed(DreamerV3):
    """
    Measures the CPU time of its updates.

    :cvar train_cpu: seconds since it was set to 0
    """

    train_cpu: ClassVar[float] = 0.0

    def train(self, *args: Any, **kwargs: Any) -> None:
        """As DreamerV3's."""
        before = time.process_time()
        super().train(*args, **kwargs)
        Timed.train_cpu += time.process_time() - before


class Watch(BaseCallback):
    """
    Prints a line in regular intervals, and stops at the end.

    :param minutes: duration
    :param every: seconds between lines
    """

    def __init__(self, minutes: float, every: float):
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.every, self.end = every, time.perf_counter() + 60 * minutes
        self.n_updates, self.next = 0, time.perf_counter() + every

    def _on_step(self) -> bool:
        now = time.perf_counter()
        if now >= self.next and self.model._n_updates > self.n_updates:
            n_updates = self.model._n_updates - self.n_updates
            line = {
                "steps": self.num_timesteps,
                "updates": self.model._n_updates,
                "memory_mb": round(1e3 * status("VmRSS"), 1),
            }
            line["update_cpu_ms"] = round(1e3 * Timed.train_cpu / n_updates, 2)
            self.lines.append(line)
            print(json.dumps(line), flush=True)
            Timed.train_cpu, self.n_updates, self.next = 0.0, self.model._n_updates, now + self.every
        return now < self.end


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """:return: growth of memory and of the time of an update, as fractions"""
    memory = [line["memory_mb"] for line in lines]
    update = [line["update_cpu_ms"] for line in lines]
    fifth, half = max(1, len(lines) // 5), len(lines) // 2
    early, late = np.median(update[fifth : 2 * fifth] or update), np.median(update[-fifth:])
    return {
        "lines": len(lines),
        "memory_mb": [memory[half], memory[-1]],
        "memory_growth": round(memory[-1] / memory[half] - 1, 4),
        "update_cpu_ms": [round(float(early), 2), round(float(late), 2)],
        "update_growth": round(float(late / early) - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60, help="seconds between lines")
    args = parser.parse_args()
    th.set_num_threads(1)
    sizes = dict(model_size="debug", buffer_size=ROWS, batch_size=8, batch_length=16, training_ratio=32)
    env, eval_env = (make_vec_env("sb3_dreamer/PixelCatch16-v0", n_envs, seed=n_envs) for n_envs in (2, 1))
    model = Timed("CnnPolicy", env, seed=0, device="cpu", **sizes)
    watch = Watch(args.minutes, args.every)
    with tempfile.TemporaryDirectory() as folder:
        evaluate = EvalCallback(eval_env, eval_freq=500, n_eval_episodes=5, best_model_save_path=folder, verbose=0)
        save = DreamerCheckpointCallback(1000, Path(folder) / "checkpoints")
        model.learn(10**9, callback=[watch, evaluate, save], log_interval=100)
    print(json.dumps(summary(watch.lines)), flush=True)


if __name__ == "__main__":
    main()
