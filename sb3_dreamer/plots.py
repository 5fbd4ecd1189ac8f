"""
Learning curves over seeds, next to published ones.

    python -m sb3_dreamer.plots logs/dreamerv3

Takes all runs in the folders and their subfolders: RL Zoo's, or any folder with the files of SB3's ``EvalCallback`` or
``Monitor``. Runs whose folders have the same name up to a number at the end (``CartPole-v1_1``, ``CartPole-v1_2``) are seeds
of one task. Writes ``learning_curve_TASK.png`` and prints the last point of each task.
"""

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import ts2xy

PUBLISHED = Path(__file__).parent / "published_curves.csv"
SOURCE = "danijar/dreamerv3, commit 423291a; vectors: the agent of 2023 with 18 million parameters"
N_BINS = 50  # of the environment steps, for returns of training episodes and for seeds with different points
N_BOOTSTRAP = 2_000


class Curve(NamedTuple):
    """
    Returns of one run at increasing environment steps.

    :param steps: environment steps (n,)
    :param returns: mean returns (n,)
    :param kind: ``"evaluations"`` or ``"training episodes"``
    """

    steps: np.ndarray
    returns: np.ndarray
    kind: str


def read_published() -> list[dict[str, str]]:
    """
    :return: points of published curves: suite, task, frames, agent steps, frames over which the returns are averaged, mean,
        standard deviation, number of seeds, lower prediction bounds
    """
    with PUBLISHED.open() as file:
        return list(csv.DictReader(file))


def published_name(task: str) -> str:
    """:return: name of the task in the published curves, for an id such as ``dm_control/walker-walk-v0`` or ``ALE-Pong-v5``"""
    name = re.sub("-v[0-9]+$", "", task)
    for prefix, ours in (("dm_control", "dmc"), ("ALE", "atari")):
        if re.match(f"{prefix}[-/]", name):
            return re.sub("[^a-z0-9]+", "_", f"{ours}_{name[len(prefix) + 1 :]}".lower())
    return name


def read_run(folder: Path) -> Curve | None:
    """
    :param folder: with ``evaluations.npz`` or ``*.monitor.csv``
    :return: evaluations, or else means of training episodes; None if there is none yet
    """
    if (folder / "evaluations.npz").is_file():
        saved = np.load(folder / "evaluations.npz")
        return Curve(saved["timesteps"], saved["results"].mean(axis=1), "evaluations")
    steps, returns = ts2xy(load_results(str(folder)), "timesteps")
    if len(steps) == 0:
        return None
    edges = np.linspace(0, steps[-1], min(N_BINS, len(steps)) + 1)
    bins = np.clip(np.searchsorted(edges, steps) - 1, 0, len(edges) - 2)
    filled = np.unique(bins)
    return Curve(edges[filled + 1], np.array([returns[bins == one].mean() for one in filled]), "training episodes")


def find_runs(folders: Sequence[Path]) -> dict[str, list[Curve]]:
    """
    :param folders: with runs in them or in their subfolders
    :return: curves of the seeds by task
    :raises ValueError: if there is no run
    """
    found = {file.parent for folder in folders for name in ("evaluations.npz", "*monitor.csv") for file in folder.rglob(name)}
    tasks: dict[str, list[Curve]] = {}
    for run in sorted(found):
        curve = read_run(run)
        if curve is not None:
            tasks.setdefault(re.sub("_[0-9]+$", "", run.resolve().name), []).append(curve)
    if not tasks:
        raise ValueError(
            f"`folders` must hold `evaluations.npz` or `*monitor.csv` of a run, got {[str(one) for one in folders]}"
        )
    return tasks


def align(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """
    :param curves: of the seeds of one task
    :return: environment steps that all seeds have reached (n,), and returns there (seeds, n); between two points of a seed,
        the return is interpolated
    """
    first, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    same = all(np.array_equal(curve.steps, curves[0].steps) for curve in curves)
    steps = curves[0].steps if same else np.linspace(min(first, end), end, N_BINS)
    return steps, np.stack([np.interp(steps, curve.steps, curve.returns) for curve in curves])


def confidence(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param returns: (seeds, n)
    :return: mean over the seeds (n,), and its 95 % confidence interval by rliable's bootstrap (2, n)
    """
    mean = returns.mean(axis=0)
    if len(returns) == 1:
        return mean, np.stack([mean, mean])
    from rliable import library

    scores = {"": returns}
    _, intervals = library.get_interval_estimates(scores, lambda x: x.mean(axis=0), reps=N_BOOTSTRAP)
    return mean, intervals[""]


def draw(axes: Axes, task: str, curves: list[Curve]) -> str:
    """
    :param axes: of the figure
    :param task: name of the task
    :param curves: of its seeds
    :return: a line with the last point
    """
    steps, returns = align(curves)
    mean, (low, high) = confidence(returns)
    n = len(curves)
    axes.plot(steps, mean, label=f"{curves[0].kind}, {n} seed{'s' * (n > 1)}")
    axes.fill_between(steps, low, high, alpha=0.2)
    published = [point for point in read_published() if point["task"] == published_name(task)]
    for suite in dict.fromkeys(point["suite"] for point in published):
        points = [point for point in published if point["suite"] == suite]
        x, y, std = (np.array([float(point[name]) for point in points]) for name in ("agent_steps", "mean", "std"))
        axes.errorbar(x, y, std, fmt="o", capsize=3, color="grey", label=f"published, {suite}, {points[0]['n_seeds']} seeds")
    axes.set(title=task, xlabel="environment steps", ylabel="episode return")
    if published:
        axes.annotate(f"Published: {SOURCE}", (0, -0.22), xycoords="axes fraction", fontsize=7)
    axes.legend()
    return f"{task}: {mean[-1]:.4g} ({low[-1]:.4g} to {high[-1]:.4g}) after {steps[-1]:,.0f} steps, {n} seed{'s' * (n > 1)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: exit status
    """
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="with runs in them or in their subfolders")
    parser.add_argument("--output", type=Path, help="folder of the figures; default: the first one of `folders`")
    args = parser.parse_args(arguments)
    output = args.output or args.folders[0]
    try:
        tasks = find_runs(args.folders)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    output.mkdir(parents=True, exist_ok=True)
    for task, curves in tasks.items():
        figure = Figure(figsize=(7, 4.2))
        print(draw(figure.add_subplot(), task, curves))
        path = output / f"learning_curve_{re.sub('[^A-Za-z0-9_.-]', '-', task)}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
