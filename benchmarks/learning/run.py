"""
Train on a task with its preset and evaluate at fixed points. Runs can be stopped and resumed at any time.

    python -m benchmarks.learning.run cartpole                              # DreamerV3, seeds 0, 1, 2, two at a time
    python -m benchmarks.learning.run cartpole --algo ppo --seeds 0 1
    python -m benchmarks.learning.run cartpole --trial ent3e-4 --hyperparams ent_coef:3e-4
    torchrun --nproc-per-node=2 -m benchmarks.learning.run cartpole --jobs 1 --trial 2ranks \\
        --hyperparams "distributed_scaling:'sqrt'"

Every run appends to ``benchmarks/results/learning/TASK/ALGO[-TRIAL]-seedN.jsonl``: a first line that describes the run, then
one line per evaluation. Existing lines are never changed. Until the run is complete, a checkpoint is kept next to the file.
The same command resumes from it, with the same results as a run that was not stopped. A run needs a clean commit, which is
stored in its lines; with ``--allow-dirty`` the commit is marked with a ``+``.
``python -m benchmarks.learning.report`` makes tables and curves from these files.

Presets: ``hyperparams/dreamerv3.yml`` for DreamerV3, RL Zoo's for the others, ``baselines.yml`` where RL Zoo has none.
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
from sb3_dreamer.common.distributed.launch import is_launched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--algo", choices=ALGORITHMS, default="dreamerv3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps, default: the task's")
    parser.add_argument("--jobs", type=int, default=2, help="number of seeds run in parallel, each on one core")
    parser.add_argument("--trial", default="", help="name of a variant, part of the file name")
    parser.add_argument("--hyperparams", nargs="+", action=StoreDict, default={}, help="overrides, e.g. ent_coef:3e-4")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="on a GPU, only a pause saves a checkpoint")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="pause every run after this time, to be resumed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--allow-dirty", action="store_true", help="run sources that differ from the last commit")
    args = parser.parse_args()
    if bool(args.hyperparams) != bool(args.trial):
        parser.error("--hyperparams and --trial must be given together: a variant needs a name")
    if is_launched() and args.minutes < float("inf"):
        parser.error("--minutes needs one rank: a run with several has no checkpoint to resume from")
    steps = args.steps or TASKS[args.task].steps
    runs = [
        Run(args.task, args.algo, seed, steps, args.trial, args.hyperparams, args.results, args.device) for seed in args.seeds
    ]
    try:
        for run in runs:
            check(run, args.allow_dirty)
    except RefusedRun as error:
        sys.exit(str(error))
    start = partial(execute, allow_dirty=args.allow_dirty, minutes=args.minutes)
    if args.jobs == 1:
        list(map(start, runs))
    else:
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(start, runs))


if __name__ == "__main__":
    main()
