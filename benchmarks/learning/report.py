"""
Write ``docs/results.md``, ``docs/learning_curves.md``, ``docs/trials.md`` and curves from the files of the learning benchmark.

    python -m benchmarks.learning.report

``results.md`` is for users. ``learning_curves.md`` shows every run whose settings equal the current presets, regardless of
their file names. ``trials.md`` shows all other runs and their differences from the presets.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.learning.presets import OURS, ROOT
from benchmarks.learning.results import (
    MEASURES,
    Point,
    Result,
    anchors,
    compare_with_published,
    load,
    of_presets,
    published_points,
)
from benchmarks.learning.tasks import TASKS, Bar, Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = ROOT / "docs"
NAMES = {"dreamerv3": "DreamerV3", "ppo": "PPO", "sac": "SAC", "dqn": "DQN", "recurrentppo": "RecurrentPPO"}
SMALL = "small_"
WAYS = ("deterministic", "sampled")
WRITTEN = "<!-- Written by `python -m benchmarks.learning.report`: run that instead of editing this. -->"
HEAD = f"""{WRITTEN}
# Results

Our scores and those of SB3 come from files under [`benchmarks/results/learning`](../benchmarks/results/learning), which name
their commits. [Learning curves](learning_curves.md) shows all runs with today's presets and how they were made,
[trials](trials.md) those with other settings.
"""
SMALL_HEAD = """## Small tasks on a CPU, one setting for all

`preset("small")`, the same for every task. Command: `rl_zoo3 train --algo dreamerv3 --env ENV --conf-file small.yml`; the
runs of the table: `python -m benchmarks.learning.run TASK`. Scores are returns of evaluation episodes with deterministic
actions: mean over the seeds (lowest to highest). "SB3's best" is the best of SB3's algorithms that were run, with RL Zoo's
presets, by the same measure after the same number of steps. One CPU core.
"""
PUBLISHED_HEAD_TEXT = """## Published curves

Training returns over the last 20,000 frames (10,000 for images). Published: the authors' curves, for vectors those of the
2023 agent with a model of 18 million parameters (`danijar/dreamerv3@423291a`). Our model for vectors has 1 million. `bound`
is the lower 95 % prediction bound for as many seeds as ours, so a correct agent of the same size is below it once in 20
times. "Others" are DreamerV3 and SAC as run by the authors of TD-MPC2 (`nicklashansen/tdmpc2@e9f5932`). Command: `python -m
benchmarks.learning.run TASK`.
"""
PRESETS_HEAD = """## Small tasks, presets tuned by task

[`hyperparams/dreamerv3.yml`](../hyperparams/dreamerv3.yml), used by `rl_zoo3 train --algo dreamerv3 --env ENV`.
"""
CURVES_HEAD = f"""{WRITTEN}
# Learning curves

Runs of `python -m benchmarks.learning.run TASK --algo ALGO`. A seed trains on one CPU core with the preset of its
environment (ours: [`hyperparams/dreamerv3.yml`](../hyperparams/dreamerv3.yml), or the file that the task names; the
others': RL Zoo's, or, for our environments, [RL Zoo's preset of the most similar
environment](../benchmarks/learning/baselines.yml)), and is evaluated at fixed points on the same episodes, once with
`deterministic=True` and once with sampled actions.

This page shows the runs whose settings are those of today's presets, compared value by value. Runs with other settings are
in [trials](trials.md). A seed that was run twice with the same settings is listed twice. A `+` after a seed: some of its
evaluations were made with changes that were not committed.

Tasks with a published curve follow the published protocol. An environment step of dm_control is two frames, one of Atari
four, and the lines of their files contain every training return (`training`: environment step and return), because these
were published. `bound` is the one-sided 95% prediction bound for the mean of as many seeds as ours, `mean - t(0.95, n - 1)
* s * sqrt(1 / k + 1 / n)` for our `k` seeds and the published `n`, where `s` is the largest standard deviation of this
point and the two next to it. A negative bound cannot be missed.

`best` is the best evaluation of a seed, `last` its last one, `last three` the lowest of its last three. `best` is a maximum
over noisy numbers, and one before the first update counts too. CPU minutes were taken with two or three runs at the same
time.

Runs of one task may come from different commits, named in each line: the training step was rewritten in between, with the
same numbers up to rounding (`tests/test_scan.py`), and on small tasks rounding is enough for another curve.
"""
TRIALS_HEAD = f"""{WRITTEN}
# Trials: runs with other settings than today's presets

The same tasks, measures and marks as in [learning curves](learning_curves.md). A trial is named as its file under
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


def number(value: float) -> str:
    """:return: the number with about three significant digits"""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join([row(head), "|" + "---|" * len(head), *map(row, rows)]) + "\n"


def select(results: list[Result], task: str, algorithm: str = OURS) -> list[Result]:
    return [result for result in results if (result.task, result.algorithm) == (task, algorithm)]


def minutes(group: list[Result]) -> str:
    """:return: mean CPU minutes per seed"""
    return number(float(np.mean([result.lines[-1]["train_cpu_s"] for result in group])) / 60)


# ---- targets ----

BAR_HEAD = ["task", "shows", "steps", "random", "SB3's best", "DreamerV3", "target", "verdict", "seeds", "minutes"]


def scores_by_seed(bar: Bar, group: list[Result]) -> list[float]:
    """:return: the measure of each seed, a mean over its runs"""
    scores: dict[int, list[float]] = {}
    for result in group:
        scores.setdefault(result.seed, []).append(MEASURES[bar.measure](result.returns("deterministic", bar.steps)))
    return [float(np.mean(of_seed)) for of_seed in scores.values()]


def bar_row(name: str, task: Task, bar: Bar, results: list[Result]) -> list[Any]:
    """
    Whether a target is met: by the mean over the seeds.

    :param name: of the task
    :param task: the task
    :param bar: the target
    :param results: all results with current presets
    :return: a row for :data:`BAR_HEAD`
    """
    group = select(results, name)
    demand = [f"{word}{number(value)}" for word, value in (("", bar.must), ("aim ", bar.aim)) if value is not None]
    steps = f"{bar.steps or task.steps:,}"
    target = " ".join([bar.measure, ", ".join(demand)]).strip()
    best = best_of_sb3(name, bar, results)
    link = f"[{name}](learning_curves.md#{name})" if any(result.task == name for result in results) else name
    cells: list[Any] = [link, task.claim, steps, number(task.references["random"]), best]
    if not group:
        return [*cells, "", target, "not run with today's preset", 0, ""]
    scores = scores_by_seed(bar, group)
    score = float(np.mean(scores))
    ours = number(score) + (f" ({number(min(scores))} to {number(max(scores))})" if len(scores) > 1 else "")
    met = [word for word, value in (("met", bar.must), ("aim met", bar.aim)) if value is not None and score >= value]
    verdict = met[-1] if met else "**missed**" if demand else "reported"
    if not all(result.is_complete for result in group):
        verdict += " (unfinished)"
    return [*cells, ours, target, verdict, len(scores), minutes(group)]


def best_of_sb3(name: str, bar: Bar, results: list[Result]) -> str:
    """:return: best mean over the seeds of SB3's algorithms, with its name"""
    best = (-float("inf"), "not run")
    for algorithm in NAMES:
        runs = [one for task in {name, name.removeprefix(SMALL)} for one in select(results, task, algorithm)]
        if algorithm != OURS and runs:
            score = float(np.mean(scores_by_seed(bar, runs)))
            best = max(best, (score, f"{number(score)} ({NAMES[algorithm]})"))
    return best[1]


# ---- published curves ----

PUBLISHED_HEAD = ["frames", "ours (seeds)", "published +- std (seeds)", "bound", "verdict"]


def published_row(point: Point) -> list[Any]:
    """:return: our training return next to the published one"""
    published = f"{number(point.mean)} +- {number(point.std)} ({point.n_published})"
    return [f"{point.frames:,}", f"{number(point.ours)} ({point.n_ours})", published, number(point.bound), point.verdict]


def published_rows(task: Task, group: list[Result]) -> list[list[Any]]:
    """:return: one row for each published point that any seed has reached"""
    return [published_row(point) for point in compare_with_published(task, group)]


def published_overview(results: list[Result]) -> list[list[Any]]:
    """:return: one row for each published point that was reached, with scores of others"""
    rows = []
    for name, task in TASKS.items():
        group, others = select(results, name), anchors(task)
        for point in compare_with_published(task, group):
            theirs = [others.get((method, point.frames), "") for method in ("dreamerv3", "sac")]
            cells = published_row(point)
            rows.append([f"[{name}](learning_curves.md#{name})", *cells[:3], *theirs, *cells[3:], minutes(group)])
    return rows


# ---- one task ----

SUMMARY_HEAD = [
    "",
    "seeds",
    "steps",
    "updates",
    *(f"{way}: {measure}" for way in WAYS for measure in MEASURES),
    "CPU min per seed",
]


def summary_row(name: str, group: list[Result]) -> list[Any]:
    """Scores of an algorithm, one per seed."""

    def scores(measure: str, way: str) -> str:
        return ", ".join(number(MEASURES[measure](result.returns(way))) for result in group if result.returns(way))

    ends = [result.lines[-1] for result in group]
    if not all(result.is_complete for result in group):
        name += " (unfinished)"
    return [
        name,
        ", ".join(result.label for result in group),
        "{:,}".format(max(end["steps"] for end in ends)),
        "{:,}".format(max(end["updates"] for end in ends)),
        *(scores(measure, way) for way in WAYS for measure in MEASURES),
        minutes(group),
    ]


def plot(name: str, task: Task, groups: dict[str, list[Result]], path: Path) -> None:
    """Plot the mean over the seeds at every evaluation, and a band from the worst to the best seed."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    if published_points(task):
        plot_published(task, groups.get(NAMES[OURS], []), axes)
    else:
        plot_evaluations(task, groups, axes)
    axes.set_title(f"{name}: {task.env}")
    axes.legend(fontsize=8, title="(runs)", title_fontsize=7)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def plot_evaluations(task: Task, groups: dict[str, list[Result]], axes: Any) -> None:
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
    axes.set(xlabel="environment steps", ylabel="return (deterministic)")


def plot_published(task: Task, group: list[Result], axes: Any) -> None:
    """Training returns of each seed, and the published mean with a band of one standard deviation over the seeds."""
    points = published_points(task)
    repeat = int(points[0]["env_frames"]) // int(points[0]["agent_steps"])
    for result in group:
        episodes = [episode for line in result.lines for episode in line["training"]]
        steps, returns = np.array(episodes).T
        axes.plot(steps * repeat, returns, ".", markersize=3, label=f"DreamerV3, seed {result.label}")
    frames, means, stds = (np.array([float(point[key]) for point in points]) for key in ("env_frames", "mean", "std"))
    axes.plot(frames, means, "k-o", markersize=4, label=f"published ({points[0]['n_seeds']})")
    axes.fill_between(frames, means - stds, means + stds, alpha=0.2, color="k", linewidth=0)
    axes.set(xlabel="frames", ylabel="return of training episodes")


# ---- pages ----


def render(results: list[Result]) -> str:
    """
    :param results: all results
    :return: the page for users
    """
    today = of_presets(results)

    def bars(is_small: bool) -> str:
        named = [(name, task) for name, task in TASKS.items() if name.startswith(SMALL) == is_small]
        return table(BAR_HEAD, [bar_row(name, task, bar, today) for name, task in named for bar in task.bars])

    head = ["task", *PUBLISHED_HEAD[:3], "others' DreamerV3", "others' SAC", *PUBLISHED_HEAD[3:], "minutes"]
    published = [name for name, task in TASKS.items() if compare_with_published(task, select(today, name))]
    images = [f"![{name}](images/learning/{name}.png)" for name in published]
    parts = [HEAD, SMALL_HEAD, bars(True), PUBLISHED_HEAD_TEXT, table(head, published_overview(today)), *images]
    return "\n".join([*parts, "", PRESETS_HEAD, bars(False)])


def render_curves(results: list[Result], plots: Path | None = None) -> str:
    """
    :param results: all results
    :param plots: folder for the curves; None plots nothing
    :return: the page of runs with the current presets
    """
    of_today = of_presets(results)
    parts = [CURVES_HEAD]
    for name, task in TASKS.items():
        algorithms = {result.algorithm for result in results if result.task == name}
        groups = {NAMES[algorithm]: select(of_today, name, algorithm) for algorithm in NAMES if algorithm in algorithms}
        missing = [label for label, group in groups.items() if not group]
        groups = {label: group for label, group in groups.items() if group}
        if groups or missing:
            parts.append(section(name, task))
        if groups:
            parts.append(table(SUMMARY_HEAD, [summary_row(label, group) for label, group in groups.items()]))
            comparison = published_rows(task, groups.get(NAMES[OURS], []))
            if comparison:
                parts.append(table(PUBLISHED_HEAD, comparison))
            parts.append(f"![learning curves](images/learning/{name}.png)\n")
        if missing:
            parts.append(f"Not run with today's preset: {', '.join(missing)}. See [trials](trials.md#{name}).\n")
        if groups and plots:
            plot(name, task, groups, plots / f"{name}.png")
    return "\n".join(parts)


def render_trials(results: list[Result]) -> str:
    """
    :param results: all results
    :return: the page of all runs that :func:`render_curves` does not show
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
            compared = [[file, *row] for (file, _), group in groups.items() for row in published_rows(task, group)]
            if compared:
                parts.append(table(["trial", *PUBLISHED_HEAD], compared))
    return "\n".join(parts)


def section(name: str, task: Task) -> str:
    return f"## {name}\n\n`{task.env}`: {task.claim}. {references(task)}\n"


def references(task: Task) -> str:
    return "; ".join(f"{name} {number(score)}" for name, score in task.references.items()) + "."


PAGES = {"results.md": render, "learning_curves.md": render_curves, "trials.md": render_trials}


def main() -> None:
    images = DOCS / "images" / "learning"
    images.mkdir(parents=True, exist_ok=True)
    results = load()
    for name, render_page in PAGES.items():
        (DOCS / name).write_text(render_page(results))
    render_curves(results, images)


if __name__ == "__main__":
    main()
