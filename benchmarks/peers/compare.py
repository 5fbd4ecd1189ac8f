"""
Compare our training update with those of other implementations, in turns, in one process tree on one core.

Each peer needs its own virtual environment:

    python -m venv peers/torchrl && peers/torchrl/bin/pip install torch==2.13.0 torchrl==0.14.1 hydra-core
    python -m venv peers/sheeprl && peers/sheeprl/bin/pip install torch==2.13.0 sheeprl==0.8.4
    python -m venv peers/rllib && peers/rllib/bin/pip install torch==2.13.0 "ray[rllib]" pillow

    python -m benchmarks.peers.compare --torchrl peers/torchrl/bin/python --sheeprl peers/sheeprl/bin/python
    python -m benchmarks.peers.compare --rllib peers/rllib/bin/python

Vector observation of 24 numbers, 6-dimensional Box action, batch 16 x 64, horizon 15, float32, one thread. Measured is the
process CPU time of loss, backward pass, clipping, optimiser and slow critic. TorchRL: its public stepper, eager (the default
on a CPU), with the same dimensions and the same number of parameters. sheeprl: the functions of its training loop, eager (its
default), ``dreamer_v3_5_1M``, with the same number of parameters. RLlib has no model of this size. Its nearest, XXS, needs
three times the FLOP, so the ratio shows how long a user waits, not the quality of the code. Prints one line of JSON for each.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent


class Worker:
    """A process that makes one update per request."""

    def __init__(self, python: str, module: str):
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | one_thread,
        )
        self.facts = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[")):  # skip the output of libraries
                return line
        raise RuntimeError(f"{self.process.args} ended without an answer")

    def update(self) -> tuple[float, float]:
        """:return: (wall, process CPU) seconds"""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        wall, cpu = json.loads(self._line())
        return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchrl", help="Python of the environment with TorchRL")
    parser.add_argument("--sheeprl", help="Python of the environment with sheeprl")
    parser.add_argument("--rllib", help="Python of the environment with RLlib")
    parser.add_argument("--iterations", type=int, default=5)
    args = parser.parse_args()
    workers = {"sb3_dreamer": Worker(sys.executable, "ours")}
    if args.torchrl:
        workers["torchrl"] = Worker(args.torchrl, "torchrl_update")
    if args.sheeprl:
        workers["sheeprl"] = Worker(args.sheeprl, "sheeprl_update")
    if args.rllib:
        workers["rllib"] = Worker(args.rllib, "rllib_update")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for _ in range(args.iterations):
        for name, worker in workers.items():
            times[name].append(worker.update())
    ours = np.median([cpu for _, cpu in times["sb3_dreamer"]])
    for name, worker in workers.items():
        wall, cpu = np.array(times[name]).T
        line = dict(
            peer=name,
            **worker.facts,
            iterations=args.iterations,
            seconds_per_update=round(float(np.median(wall)), 4),
            cpu_seconds_per_update=round(float(np.median(cpu)), 4),
            min_cpu_seconds=round(float(cpu.min()), 4),
            times_ours=round(float(np.median(cpu) / ours), 2),
        )
        print(json.dumps(line), flush=True)
        worker.process.kill()


if __name__ == "__main__":
    main()
