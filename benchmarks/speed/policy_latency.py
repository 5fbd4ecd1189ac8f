"""
Latency of acting: ``policy.step`` on tensors, and ``policy.predict`` on numpy arrays.

    python -m benchmarks.speed.policy_latency --preset proprio_1m --envs 1 16

Prints one line of JSON for each number of environments: process CPU time in milliseconds, minimum over rounds.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from benchmarks.speed.workloads import PRESETS, make_policy
from sb3_dreamer.dreamerv3.policies import DreamerPolicy


def milliseconds(function: Callable[[], Any], rounds: int, calls: int = 100) -> float:
    """:return: CPU time of one call in milliseconds, minimum over rounds"""
    for _ in range(20):
        function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            function()
        times.append((time.process_time() - start) / calls * 1e3)
    return min(times)


class Actor:
    """Act on the same observations repeatedly, passing the state on."""

    def __init__(self, policy: DreamerPolicy, observations: np.ndarray):
        self.policy, self.observations, self.tensors = policy, observations, th.as_tensor(observations)
        self.starts = np.zeros(len(observations), np.float32)
        self.state, self.arrays = policy.initial_state(len(observations)), None

    def step(self) -> None:
        """One step on tensors."""
        _, self.state = self.policy.step(self.tensors, self.state, th.as_tensor(self.starts))

    def predict(self) -> None:
        """One step on numpy arrays, the interface of SB3."""
        _, self.arrays = self.policy.predict(self.observations, self.arrays, self.starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="proprio_1m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=5, help="rounds of 100 calls")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 16])
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    policy = make_policy(args.preset)
    policy.set_training_mode(False)
    for n_envs in args.envs:
        observations = np.stack([policy.observation_space.sample() for _ in range(n_envs)])
        actor = Actor(policy, observations)
        line = dict(
            preset=args.preset,
            threads=args.threads,
            iterations=args.iterations,
            envs=n_envs,
            step_ms=round(milliseconds(actor.step, args.iterations), 3),
            predict_ms=round(milliseconds(actor.predict, args.iterations), 3),
        )
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
