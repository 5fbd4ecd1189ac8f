"""The result files of the learning benchmark: loaded, and compared with the current presets."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.learning.harness import RESULTS
from benchmarks.learning.presets import find_differences
from benchmarks.learning.tasks import TASKS, Task
from sb3_dreamer.plots import read_published

HERE = Path(__file__).parent
MEASURES: dict[str, Callable[[list[float]], float]] = {
    "best": max,
    "last": lambda returns: returns[-1],
    "last three": lambda returns: min(returns[-3:]),
}


class Result(NamedTuple):
    """
    One result file.

    :param differences: differences of its settings from the current preset
    """

    task: str
    algorithm: str
    trial: str
    seed: int
    differences: list[str]
    lines: list[dict[str, Any]]

    @property
    def is_complete(self) -> bool:
        return bool(self.lines[-1]["complete"])

    @property
    def is_dirty(self) -> bool:
        """Whether an evaluation was made with uncommitted changes."""
        return any(line["commit"].endswith("+") for line in self.lines)

    @property
    def label(self) -> str:
        """Name of the seed in the tables."""
        return f"{self.seed}+" if self.is_dirty else str(self.seed)

    def training_return(self, after: int, until: int) -> float:
        """:return: mean return of the training episodes that ended within this range of environment steps"""
        episodes = [episode for line in self.lines for episode in line["training"]]
        return float(np.mean([value for step, value in episodes if after < step <= until]))

    def returns(self, way: str, steps: int | None = None) -> list[float]:
        """:return: returns of all evaluations, or of those until ``steps`` (plus 1 %, the length of a rollout)"""
        limit = float("inf") if steps is None else steps * 1.01
        return [line[way] for line in self.lines if way in line and line["steps"] <= limit]


# Trials whose settings have another meaning today.
OLD_RULES = {
    "auto01": ["ent_coef: auto: weight of 0.1 (target - share) and a linear target from 1 to 0"],
    "auto03": ["ent_coef: auto: weight of 0.3 (target - share) and a target from 1 to 0.2"],
}
OLD_HARMONY = "loss_scales: harmony without a least weight of reward and continue"
WITH_OLD_HARMONY = {*OLD_RULES, "ent3e-2"}  # where their preset has "harmony"


def old_rules(trial: str, preset: dict[str, Any]) -> list[str]:
    """:return: settings of a trial that have another meaning today"""
    is_old = trial in WITH_OLD_HARMONY and preset.get("loss_scales") == "harmony"
    return [*OLD_RULES.get(trial, []), *([OLD_HARMONY] if is_old else [])]


def load(folder: Path = RESULTS) -> list[Result]:
    """:return: all results with at least one evaluation"""
    results = []
    for path in sorted(folder.glob("*/*.jsonl")):
        head, *lines = map(json.loads, path.read_text().splitlines())
        if lines:
            names = {name: head[name] for name in ("task", "algorithm", "seed")}
            # A file is renamed when its settings cease to be the preset; its first line stays as it was written.
            names["trial"] = path.stem.removeprefix(head["algorithm"]).removesuffix(f"-seed{head['seed']}").removeprefix("-")
            differences = find_differences(TASKS[head["task"]], head) + old_rules(names["trial"], head.get("preset", {}))
            results.append(Result(**names, differences=differences, lines=lines))
    return results


def of_presets(results: list[Result]) -> list[Result]:
    """:return: the runs with the current presets, by seed; of several runs of a seed, the longest"""
    found = [result for result in results if not result.differences]
    longest: dict[tuple[str, str, int], int] = {}
    for result in found:
        key = result.task, result.algorithm, result.seed
        longest[key] = max(longest.get(key, 0), result.lines[-1]["steps"])
    found = [r for r in found if r.lines[-1]["steps"] == longest[r.task, r.algorithm, r.seed]]
    return sorted(found, key=lambda result: result.seed)


# ---- published curves ----


class Point(NamedTuple):
    """
    A point of a published curve, and ours there.

    :param frames: simulator frames: environment steps times action repeat
    :param mean: published mean over the seeds of the training returns of the last frames
    :param std: published standard deviation over the seeds
    :param n_published: number of published seeds
    :param bound: lower 95 % prediction bound for the mean of as many seeds as ours
    :param ours: mean over our seeds that have reached the point
    :param n_ours: number of these seeds
    """

    frames: int
    mean: float
    std: float
    n_published: int
    bound: float
    ours: float
    n_ours: int

    @property
    def verdict(self) -> str:
        if self.bound < 0:
            return "no power"
        return "above the bound" if self.ours >= self.bound else "**below the bound**"


def published_points(task: Task) -> list[dict[str, str]]:
    """:return: the published curve of a task, empty if it has none"""
    return [point for point in read_published() if f"{point['suite']}/{point['task']}" == task.published]


def compare_with_published(task: Task, group: list[Result]) -> list[Point]:
    """
    :param task: the task
    :param group: our runs
    :return: the published points that any of our runs has reached
    """
    found = []
    for point in published_points(task):
        end, frames = int(point["agent_steps"]), int(point["env_frames"])
        window = int(point["window_frames"]) * end // frames
        there = [result for result in group if result.lines[-1]["steps"] >= end]
        if there:
            n = len(there)
            ours = float(np.mean([result.training_return(end - window, end) for result in there]))
            bound = float(point[f"bound_{n}_seed" + "s" * (n > 1)])
            found.append(Point(frames, float(point["mean"]), float(point["std"]), int(point["n_seeds"]), bound, ours, n))
    return found


def anchors(task: Task) -> dict[tuple[str, int], str]:
    """:return: scores of other implementations by (method, frames), as ``mean +- std (seeds)``"""
    rows = [row for row in csv.DictReader((HERE / "anchors.csv").open()) if f"dmc_proprio/{row['task']}" == task.published]
    return {
        (row["method"], int(row["env_frames"])): f"{float(row['mean']):.0f} +- {float(row['std']):.0f} ({row['n_seeds']})"
        for row in rows
    }
