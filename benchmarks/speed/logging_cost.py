"""
What the log costs: the time of ``train`` with all metrics, and without those that only the log needs, in turns.

    python -m benchmarks.speed.logging_cost

"Without" leaves out the norms by part, the sums over updates, the clock and the log lines; the metrics that are terms of the
loss are computed in both. Prints one line of JSON per setting: process CPU time of one update, median and least, and the
median of the ratio over the rounds.
"""

import argparse
import json
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.speed.workloads import interleave
from sb3_dreamer import DreamerV3, preset
from sb3_dreamer.common.clock import TrainingClock
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.dreamerv3 import update

LOG_EVERY = 20  # updates; `learn` writes a line every 500 updates or four episodes
SETTINGS: dict[str, dict[str, Any]] = {"small": preset("small"), "1m": dict(model_size="1m", learning_starts=0)}


def make_model(setting: str) -> DreamerV3:
    """:return: a model with a filled replay buffer, which has made a few updates"""
    env = make_vec_env("Pendulum-v1", 4, seed=0)
    model = DreamerV3("MlpPolicy", env, seed=0, **{**SETTINGS[setting], "training_ratio": 1})
    model.learn(800, log_interval=None)
    return model


def with_log(model: DreamerV3) -> None:
    """Make updates, and write a line."""
    model.train(LOG_EVERY)
    model.dump_logs()


def without_log(model: DreamerV3) -> None:
    """Make as many updates without the metrics that only the log needs."""
    with ExitStack() as patches:
        for owner, name, result in (
            (update, "by_part", {}),
            (update.TrainingUpdate, "step_norms", {}),
            (MetricAverager, "add", None),
            (MetricAverager, "record", {}),
            (TrainingClock, "add_update", None),
            (TrainingClock, "enter", None),
        ):
            patches.enter_context(mock.patch.object(owner, name, return_value=result))
        model.train(LOG_EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    th.set_num_threads(1)
    for setting in args.settings:
        model = make_model(setting)
        functions = {"with": lambda: with_log(model), "without": lambda: without_log(model)}  # noqa: B023
        seconds = {
            name: np.array([cpu for cpu, _ in times]) / LOG_EVERY for name, times in interleave(functions, args.rounds).items()
        }
        line: dict[str, Any] = {"setting": setting, "updates": args.rounds * LOG_EVERY, "threads": 1}
        for name, one in seconds.items():
            line |= {
                f"{name}_ms": round(1000 * float(np.median(one)), 2),
                f"{name}_least_ms": round(1000 * float(one.min()), 2),
            }
        line["ratio"] = round(float(np.median(seconds["with"] / seconds["without"])), 4)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
