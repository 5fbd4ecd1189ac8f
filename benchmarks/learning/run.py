"""
Train on a task through its preset, evaluate at fixed points, stop and resume anywhere.

    python -m benchmarks.learning.run cartpole                              # our preset, seeds 0, 1, 2, two at a time
    python -m benchmarks.learning.run cartpole --algo ppo --seeds 0 1
    python -m benchmarks.learning.run cartpole --trial ent3e-4 --hyperparams ent_coef:3e-4
    torchrun --nproc-per-node=2 -m benchmarks.learning.run cartpole --jobs 1 --trial 2ranks \\
        --hyperparams "distributed_scaling:'sqrt'"

Every run appends to ``benchmarks/results/learning/TASK/ALGO[-TRIAL]-seedN.jsonl``: a first line that says what is run, then
one line per evaluation. What is written is never changed. Next to the file lies a checkpoint until the run is complete; the
same command resumes from there, and ends with the same numbers as a run that was not stopped. A run starts from a clean
commit, which its lines name; with ``--allow-dirty`` they mark the commit with a ``+``.
``python -m benchmarks.learning.report`` makes tables and curves of these files.

Presets: ``hyperparams/dreamerv3.yml`` for us, RL Zoo's own for the others, ``baselines.yml`` where RL Zoo has none.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one core for every seed

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rl_zoo3.utils import StoreDict

from benchmarks.learning.harness import RESULTS, RefusedRun, Run, check, execute
from benchmarks.learning.presets import ALGORITHMS
from benchmarks.learning.tasks import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--algo", choices=ALGORITHMS, default="dreamerv3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps, default: the task's")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at the same time, each on one core")
    parser.add_argument("--trial", default="", help="name of a variant, for the file")
    parser.add_argument("--hyperparams", nargs="+", action=StoreDict, default={}, help="over the preset, e.g. ent_coef:3e-4")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="a run on a GPU has no checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--allow-dirty", action="store_true", help="run sources that differ from the last commit")
    args = parser.parse_args()
    if bool(args.hyperparams) != bool(args.trial):
        parser.error("--hyperparams and --trial go together: what differs from the preset needs a name")
    steps = args.steps or TASKS[args.task].steps
    runs = [
        Run(args.task, args.algo, seed, steps, args.trial, args.hyperparams, args.results, args.device) for seed in args.seeds
    ]
    try:
        for run in runs:
            check(run, args.allow_dirty)
    except RefusedRun as error:
        sys.exit(str(error))
    start = partial(execute, allow_dirty=args.allow_dirty)
    if args.jobs == 1:
        list(map(start, runs))
    else:
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(start, runs))


if __name__ == "__main__":
    main()
