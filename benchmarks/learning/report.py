"""
Write ``docs/results.md``, ``docs/trials.md`` and learning curves from the result files of the learning benchmark.

    python -m benchmarks.learning.report

``results.md`` shows the runs whose settings equal the current presets, regardless of their file names. ``trials.md`` shows all
other runs and their differences from the presets.
"""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from benchmarks.learning.harness import RESULTS
from benchmarks.learning.presets import OURS, ROOT, find_differences
from benchmarks.learning.tasks import TASKS, Bar, Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS, HERE = ROOT / "docs", Path(__file__).parent
NAMES = {"dreamerv3": "DreamerV3", "ppo": "PPO", "sac": "SAC", "dqn": "DQN", "recurrentppo": "RecurrentPPO"}
WRITTEN = "<!-- Written by `python -m benchmarks.learning.report`: run that instead of editing this. -->"
HEAD = f"""{WRITTEN}
# Results on small tasks

Every number here comes from a file under [`benchmarks/results/learning`](../benchmarks/results/learning), written by
`python -m benchmarks.learning.run TASK --algo ALGO`. A seed trains on one CPU core with the preset of its environment
(ours: [`hyperparams/dreamerv3.yml`](../hyperparams/dreamerv3.yml); the others': RL Zoo's, or, for our environments,
[RL Zoo's preset of the most similar environment](../benchmarks/learning/baselines.yml)), and is evaluated at fixed points on
the same episodes, once with `deterministic=True` and once with sampled actions.

This page shows the runs whose settings are those of today's presets, compared value by value. Runs with other settings are
in [trials](trials.md). A seed that was run twice with the same settings is listed twice. A `+` after a seed: some of its
evaluations were made with changes that were not committed.

The tasks `dmc_...` are dm_control with vector observations and the published protocol
([`dm_control_proprio.yml`](../hyperparams/dm_control_proprio.yml)): an environment step is two frames, and the lines of their
files contain every training return (`training`: environment step and return), because these were published.
A table compares them with the published curve of the 2023 agent (`danijar/dreamerv3@423291a:scores/data`, model size S, 5
seeds): mean training return over the last 20,000 frames. `bound` is the one-sided 95% prediction bound for the mean of as many
seeds as ours, `mean - t(0.95, n - 1) * s * sqrt(1 / k + 1 / n)` for our `k` seeds and the published `n`, where `s` is the
largest standard deviation of this point and the two next to it. A negative bound cannot be missed.

`best` is the best evaluation of a seed, `last` its last one, `last three` the lowest of its last three. `best` is a maximum
over noisy numbers, and one before the first update counts too. CPU minutes were taken with two or three runs at the same time.

Runs of one task may come from different commits, named in each line: the training step was rewritten in between, with the
same numbers up to rounding (`tests/test_scan.py`), and on small tasks rounding is enough for another curve.
"""
TRIALS_HEAD = f"""{WRITTEN}
# Trials: runs with other settings than today's presets

The same tasks, measures and marks as in [results](results.md). A trial is named as its file under
[`benchmarks/results/learning`](../benchmarks/results/learning), and shown by what differs from today's preset:
`key: value of the preset -> value of the run`. `not set` means the default of the algorithm when it was run. A run with
today's settings is here if it was stopped and another run of its seed went on for longer.

How far to trust them: most have one seed, and were stopped by hand when they looked bad or when the time was needed
elsewhere; about ten starts of less than 5,000 steps were deleted. `constant` was converted from files of an older benchmark.
In all others, the settings as run (`preset` in the first line) and the evaluations were not edited. Names and `overrides`
in the first line were edited by hand where a setting became or ceased to be the preset: the trials of `tmaze4`
and `tmaze10`; `batch8x8`, `gamma99`, `lr1e-3`, `batch16x16` and `twostages` of `pixelreach`, and `twostages` of its Dict form;
`fourstages` of `pixelcatch64`; `continue20ent1e-2` seed 1 and `continue20all128` of `cartpole`; and, in the results, seed 0
of `pixelreach`.
"""
PUBLISHED_HEAD = ["frames", "training return", "seeds", "published +- std (seeds)", "bound", "verdict"]
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
        return [line[way] for line in self.lines if line["steps"] <= limit]


def load(folder: Path = RESULTS) -> list[Result]:
    """:return: all results with at least one evaluation"""
    results = []
    for path in sorted(folder.glob("*/*.jsonl")):
        head, *lines = map(json.loads, path.read_text().splitlines())
        if lines:
            differences = find_differences(TASKS[head["task"]], head)
            names = {name: head[name] for name in ("task", "algorithm", "trial", "seed")}
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


def number(value: float) -> str:
    """:return: the number with about three significant digits"""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join([row(head), "|" + "---|" * len(head), *map(row, rows)]) + "\n"


# ---- rows of the tables ----


def summary_row(name: str, group: list[Result]) -> list[Any]:
    """Scores of an algorithm, one per seed."""

    def scores(measure: str, way: str) -> str:
        return ", ".join(number(MEASURES[measure](result.returns(way))) for result in group)

    ends = [result.lines[-1] for result in group]
    if not all(result.is_complete for result in group):
        name += " (unfinished)"
    return [
        name,
        ", ".join(result.label for result in group),
        "{:,}".format(max(end["steps"] for end in ends)),
        "{:,}".format(max(end["updates"] for end in ends)),
        *(scores(measure, way) for way in ("deterministic", "sampled") for measure in ("best", "last", "last three")),
        number(float(np.mean([end["train_cpu_s"] for end in ends])) / 60),
    ]


SUMMARY_HEAD = [
    "",
    "seeds",
    "steps",
    "updates",
    *(f"{way}: {measure}" for way in ("deterministic", "sampled") for measure in ("best", "last", "last three")),
    "CPU min per seed",
]


def bar_row(name: str, task: Task, bar: Bar, group: list[Result]) -> list[Any]:
    """Whether a bar is met. The measure is averaged over the runs of a seed, then over the seeds."""
    steps = bar.steps or task.steps
    demand = [f"{word} {number(value)}" for word, value in (("must", bar.must), ("aim", bar.aim)) if value is not None]
    cells: list[Any] = [f"[{name}](#{name})", task.claim, f"{steps:,}", bar.measure, ", ".join(demand)]
    if not group:
        return [*cells, "", "", "not run with today's preset"]
    seeds = {result.seed for result in group}

    def mean(way: str) -> float:
        scores = {seed: [MEASURES[bar.measure](r.returns(way, bar.steps)) for r in group if r.seed == seed] for seed in seeds}
        return float(np.mean([np.mean(of_seed) for of_seed in scores.values()]))

    means = {way: mean(way) for way in ("deterministic", "sampled")}
    score = means["deterministic"]
    met = [word for word, value in (("must", bar.must), ("aim", bar.aim)) if value is not None and score >= value]
    verdict = f"{met[-1]} met" if met else "**missed**"
    if len(seeds) < 3 or not all(result.is_complete for result in group):
        verdict += f" ({len(seeds)} seed{'s' * (len(seeds) > 1)}, unfinished)"
    return [*cells, number(score), number(means["sampled"]), verdict]


def published_rows(task: Task, group: list[Result]) -> list[list[Any]]:
    """:return: our training returns next to the published ones, one row for each published point that any seed has reached"""
    if task.published is None:
        return []
    rows = []
    for point in csv.DictReader((HERE / "published.csv").open()):
        end = int(point["agent_steps"])
        window = int(point["window_frames"]) * end // int(point["env_frames"])
        group_there = [result for result in group if result.lines[-1]["steps"] >= end]
        if f"{point['suite']}/{point['task']}" != task.published or not group_there:
            continue
        by_seed = [result.training_return(end - window, end) for result in group_there]
        n_seeds, score = len(by_seed), float(np.mean(by_seed))
        bound = float(point[f"bound_{n_seeds}_seed" + "s" * (n_seeds > 1)])
        verdict = "no power" if bound < 0 else "above the bound" if score >= bound else "**below the bound**"
        published = f"{number(float(point['mean']))} +- {number(float(point['std']))} ({point['n_seeds']})"
        rows.append([f"{int(point['env_frames']):,}", number(score), n_seeds, published, number(bound), verdict])
    return rows


def plot(name: str, task: Task, groups: dict[str, list[Result]], path: Path) -> None:
    """Plot the mean over the seeds at every evaluation, and a band from the worst to the best seed."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for label, group in groups.items():
        points = min(len(result.lines) for result in group)
        steps = [line["steps"] for line in group[0].lines[:points]]
        returns = np.array([result.returns("deterministic")[:points] for result in group])  # (seeds, points)
        (line,) = axes.plot(
            steps, returns.mean(0), label=f"{label} ({len(group)})", linewidth=2 if label == NAMES[OURS] else 1
        )
        axes.fill_between(steps, returns.min(0), returns.max(0), alpha=0.15, color=line.get_color(), linewidth=0)
    for reference, score in task.references.items():
        axes.axhline(score, color="grey", linestyle=":", linewidth=0.8)
        axes.annotate(reference, (0, score), fontsize=7, color="grey", va="bottom")
    axes.set(title=f"{name}: {task.env}", xlabel="environment steps", ylabel="return (deterministic)")
    axes.legend(fontsize=8, title="(runs)", title_fontsize=7)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


# ---- pages ----


def render(results: list[Result], plots: Path | None = None) -> str:
    """
    :param results: all results
    :param plots: folder for the curves; None plots nothing
    :return: the page of runs with the current presets
    """
    of_today = of_presets(results)

    def select(task: str, algorithm: str) -> list[Result]:
        return [result for result in of_today if (result.task, result.algorithm) == (task, algorithm)]

    bars = [bar_row(name, task, bar, select(name, OURS)) for name, task in TASKS.items() for bar in task.bars]
    head = ["task", "shows", "steps", "measure", "bar (mean over seeds)", "deterministic", "sampled", "verdict"]
    parts = [HEAD, "## Bars\n", table(head, bars)]
    for name, task in TASKS.items():
        algorithms = {result.algorithm for result in results if result.task == name}
        groups = {NAMES[algorithm]: select(name, algorithm) for algorithm in NAMES if algorithm in algorithms}
        missing = [label for label, group in groups.items() if not group]
        groups = {label: group for label, group in groups.items() if group}
        if groups or missing:
            parts.append(section(name, task))
        if groups:
            if task.episodes:
                parts.append(table(SUMMARY_HEAD, [summary_row(label, group) for label, group in groups.items()]))
            comparison = published_rows(task, groups.get(NAMES[OURS], []))
            if comparison:
                parts.append(table(PUBLISHED_HEAD, comparison))
            if task.episodes:
                parts.append(f"![learning curves](images/learning/{name}.png)\n")
        if missing:
            parts.append(f"Not run with today's preset: {', '.join(missing)}. See [trials](trials.md#{name}).\n")
        if groups and plots and task.episodes:
            plot(name, task, groups, plots / f"{name}.png")
    return "\n".join(parts)


def render_trials(results: list[Result]) -> str:
    """
    :param results: all results
    :return: the page of all runs that :func:`render` does not show
    """
    of_today = of_presets(results)
    parts = [TRIALS_HEAD]
    for name, task in TASKS.items():
        groups: dict[tuple[str, str], list[Result]] = {}
        for result in results:
            if result.task == name and result not in of_today:
                file = "-".join(filter(None, (result.algorithm, result.trial)))
                difference = ", ".join(f"`{text}`" for text in result.differences) or "none, but stopped early"
                groups.setdefault((file, difference), []).append(result)
        if groups:
            rows = []
            for (file, difference), group in groups.items():
                label, *cells = summary_row(file, group)
                rows.append([label, difference, *cells])
            parts += [section(name, task), table(["trial", "differs from the preset", *SUMMARY_HEAD[1:]], rows)]
    return "\n".join(parts)


def section(name: str, task: Task) -> str:
    return f"## {name}\n\n`{task.env}`: {task.claim}. {references(task)}\n"


def references(task: Task) -> str:
    return "; ".join(f"{name} {number(score)}" for name, score in task.references.items()) + "."


def main() -> None:
    images = DOCS / "images" / "learning"
    images.mkdir(parents=True, exist_ok=True)
    results = load()
    (DOCS / "results.md").write_text(render(results, images))
    (DOCS / "trials.md").write_text(render_trials(results))


if __name__ == "__main__":
    main()
