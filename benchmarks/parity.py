"""
Published curves on one GPU, in pieces of ten minutes: dm_control with images (size 12m) and Atari100k (size 200m).

    python -m benchmarks.parity                          # run the next piece, then compare with the published curves
    python -m benchmarks.parity --report                 # only compare
    python -m benchmarks.parity --tasks atari100k_krull --seeds 0 1 --minutes 30

Call it again until it says that nothing is left. Runs are those of ``benchmarks.learning.run`` and are paused when the time is
up. Their files are under ``benchmarks/results/learning``. A checkpoint, which holds the replay buffer, lies next to the file.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time

import torch as th

from benchmarks.learning.harness import RefusedRun, Run, execute
from benchmarks.learning.presets import OURS
from benchmarks.learning.report import PUBLISHED_HEAD, published_rows, select, table
from benchmarks.learning.results import RESULTS, load, of_presets
from benchmarks.learning.tasks import TASKS

SUITE = [name for name in TASKS if name.startswith(("vision_", "atari100k_"))]
# What each kind of task needs: module, and how to install it.
NEEDS = {
    "vision": {"dm_control": ".[dmc]", "shimmy": ".[dmc]"},
    "atari100k": {"ale_py": ".[atari]", "cv2": ".[atari]"},
}
RENDERERS = {"egl": "libegl1 and the driver of the GPU", "osmesa": "libosmesa6"}
RENDER = "from dm_control import suite; suite.load('cartpole', 'swingup').physics.render(64, 64, camera_id=0)"
# Rest of a piece that is too short to start another run.
LEAST_MINUTES = 1.0


def find_missing(task: str) -> list[str]:
    """:return: for each module that the task needs and that is not installed, how to install it"""
    needs = NEEDS[task.split("_")[0]]
    return [
        f"{module}: pip install -e '{package}'" for module, package in needs.items() if not importlib.util.find_spec(module)
    ]


def choose_renderer() -> str | None:
    """:return: the value of ``MUJOCO_GL`` that the user has set, or else the first one that renders an image, or None"""
    if "MUJOCO_GL" in os.environ:
        return os.environ["MUJOCO_GL"]
    for name in RENDERERS:
        environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        if subprocess.run([sys.executable, "-c", RENDER], env=environment, capture_output=True, check=False).returncode == 0:
            return name
    return None


def prepare(task: str) -> str | None:
    """
    Choose the renderer of a task with images of dm_control.

    :param task: name of a task
    :return: what it lacks on this machine, or None
    """
    missing = find_missing(task)
    if missing:
        return ", ".join(missing)
    if task.startswith("vision_"):
        renderer = choose_renderer()
        if renderer is None:
            return "no renderer works: install " + ", or ".join(f"{packages} ({name})" for name, packages in RENDERERS.items())
        os.environ.setdefault("MUJOCO_GL", renderer)  # read when dm_control is imported
    return None


def compare(tasks: list[str]) -> str:
    """:return: a table with our training returns and the published ones, for the points that our runs have reached"""
    results = of_presets(load())
    rows = [[name, *row] for name in tasks for row in published_rows(TASKS[name], select(results, name))]
    return table(["task", *PUBLISHED_HEAD], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SUITE, default=SUITE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="length of a piece, without about a minute to start and save"
    )
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--report", action="store_true", help="run nothing, only compare")
    args = parser.parse_args()
    if not args.report:
        if args.device == "cuda" and not th.cuda.is_available():
            sys.exit(
                "No CUDA device: a GPU is needed. On a CPU (`--device cpu`), an update of these models takes many seconds"
            )
        print(run_piece(args.tasks, args.seeds, args.minutes, args.device))
    print(compare(args.tasks))


def run_piece(tasks: list[str], seeds: list[int], minutes: float, device: str) -> str:
    """
    :param tasks: names of tasks
    :param seeds: all tasks are run with the first seed, then all with the next one
    :param minutes: pause after this time
    :param device: "cpu" or "cuda"
    :return: a line that says what is left
    """
    end = time.monotonic() + 60 * minutes
    runs = [Run(task, OURS, seed, TASKS[task].steps, "", {}, RESULTS, device) for seed in seeds for task in tasks]
    left = [run for run in runs if not run.is_complete()]
    lacks = {task: prepare(task) for task in tasks}
    for task, lack in lacks.items():
        if lack:
            print(f"{task} is left out: {lack}")
    for run in [run for run in left if not lacks[run.task]]:
        minutes_left = (end - time.monotonic()) / 60
        if minutes_left < LEAST_MINUTES:
            break
        try:
            execute(run, minutes=minutes_left)
        except RefusedRun as error:
            sys.exit(str(error))
    names = [f"{run.task} seed {run.seed}" for run in runs if not run.is_complete()]
    return f"Left: {', '.join(names)}" if names else "Nothing is left"


if __name__ == "__main__":
    main()
