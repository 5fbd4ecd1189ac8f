"""
Turn the learning benchmark's result files into ``docs/results.md`` and curves.

    python -m benchmarks.learning.report
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from benchmarks.learning.harness import RESULTS, ROOT
from benchmarks.learning.tasks import TASKS, Bar, Task

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = ROOT / "docs"
OURS = "dreamerv3"
TWO_RANKS = "2ranks"  # the trial of two processes that train together
NAMES = {"dreamerv3": "DreamerV3", "ppo": "PPO", "sac": "SAC", "dqn": "DQN", "recurrentppo": "RecurrentPPO"}
HEAD = """<!-- Written by `python -m benchmarks.learning.report`: run that instead of editing this. -->
# Results on small tasks

Every number here comes from a file under [`benchmarks/results/learning`](../benchmarks/results/learning), written by
`python -m benchmarks.learning.run TASK --algo ALGO`. A seed trains on one CPU core with the preset of its environment
(ours: [`hyperparams/dreamerv3.yml`](../hyperparams/dreamerv3.yml); the others': RL Zoo's, or for our own worlds
[its nearest kin](../benchmarks/learning/baselines.yml)), and is evaluated at fixed points on the same episodes, once with
`deterministic=True` and once with sampled actions.

The tasks `dmc_...` are dm_control as numbers with the published protocol
([`dm_control_proprio.yml`](../hyperparams/dm_control_proprio.yml)): an environment step is two frames, and the lines of their
files hold every training return (`training`: environment step and return), for that is what was published.

`best` is the best evaluation of a seed, `last` its last one, `last three` the lowest of its last three. `best` is a maximum
over noisy numbers, and one before the first update counts too. CPU minutes were taken with two or three runs beside each
other.

How far to trust the trials: most have one seed, and were stopped by hand when they looked bad or when the time was needed
elsewhere; about ten starts of less than 5,000 steps were deleted. Where a setting became or ceased to be the preset, name and
`overrides` in the first line of its file were edited by hand, the evaluations were not: the trials of `tmaze4` and `tmaze10`;
`batch8x8`, `gamma99`, `lr1e-3`, `batch16x16` and `twostages` of `pixelreach`, and `twostages` of its Dict form;
`fourstages` of `pixelcatch64`; `continue20ent1e-2` seed 1 and `continue20all128` of `cartpole`; and seed 0 of `pixelreach`,
a trial whose settings became the preset as they were. `constant`
was converted from files of an older benchmark. `overrides` say what differed from the preset of that day; what ran stands in
the first line of each file, whole. `lin20last8fn01` of `cartpole` has the settings that are now the preset, run by an older
version of the code.

Files of one task may come from different commits, named in each line: the training step was rewritten in between, with the
same numbers up to rounding (`tests/test_scan.py`), and on small tasks rounding is enough for another curve.
"""
MEASURES: dict[str, Callable[[list[float]], float]] = {
    "best": max,
    "last": lambda returns: returns[-1],
    "last three": lambda returns: min(returns[-3:]),
}


class Result(NamedTuple):
    """One file."""

    task: str
    algorithm: str
    trial: str
    seed: int
    steps: int
    overrides: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def is_complete(self) -> bool:
        return bool(self.lines[-1]["complete"])

    def returns(self, way: str, steps: int | None = None) -> list[float]:
        """:return: of all evaluations, or of those until so many steps, give or take one rollout"""
        limit = float("inf") if steps is None else steps * 1.01
        return [line[way] for line in self.lines if line["steps"] <= limit]


def load(folder: Path = RESULTS) -> list[Result]:
    """:return: all results that have an evaluation"""
    results = []
    for path in sorted(folder.glob("*/*.jsonl")):
        head, *lines = map(json.loads, path.read_text().splitlines())
        if lines:
            results.append(Result(**{name: head[name] for name in Result._fields[:-1]}, lines=lines))
    return results


def number(value: float) -> str:
    """:return: with three digits that count"""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join([row(head), "|" + "---|" * len(head), *map(row, rows)]) + "\n"


# ---- what is said of one algorithm, and of a bar ----


def summary_row(name: str, group: list[Result]) -> list[Any]:
    """Scores of every seed, side by side."""

    def scores(measure: str, way: str) -> str:
        return ", ".join(number(MEASURES[measure](result.returns(way))) for result in group)

    ends = [result.lines[-1] for result in group]
    if not all(result.is_complete for result in group):
        name += " (unfinished)"
    return [
        name,
        ", ".join(str(result.seed) for result in group),
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
    """Whether a bar holds: its measure, mean over the seeds."""
    steps = bar.steps or task.steps
    demand = [f"{word} {number(value)}" for word, value in (("must", bar.must), ("aim", bar.aim)) if value is not None]
    cells: list[Any] = [f"[{name}](#{name})", task.claim, f"{steps:,}", bar.measure, ", ".join(demand)]
    if not group:
        return [*cells, "", "", "not run"]
    means = {
        way: float(np.mean([MEASURES[bar.measure](result.returns(way, bar.steps)) for result in group]))
        for way in ("deterministic", "sampled")
    }
    score = means["deterministic"]
    met = [word for word, value in (("must", bar.must), ("aim", bar.aim)) if value is not None and score >= value]
    verdict = f"{met[-1]} met" if met else "**missed**"
    seeds = {result.seed for result in group}
    if len(seeds) < 3 or not all(result.is_complete for result in group):
        verdict += f" ({len(seeds)} seed{'s' * (len(seeds) > 1)}, unfinished)"
    return [*cells, number(score), number(means["sampled"]), verdict]


def plot(name: str, task: Task, groups: dict[str, list[Result]], path: Path) -> None:
    """Mean over the seeds at every evaluation, and a band from the worst to the best."""
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
    axes.legend(fontsize=8, title="(seeds)", title_fontsize=7)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


# ---- the page ----


def render(results: list[Result], plots: Path | None = None) -> str:
    """
    :param results: what was measured
    :param plots: folder for the curves; None draws none
    :return: the page
    """

    def select(task: str, algorithm: str, trial: str = "") -> list[Result]:
        return [r for r in results if (r.task, r.algorithm, r.trial) == (task, algorithm, trial)]

    bars = [bar_row(name, task, bar, select(name, OURS)) for name, task in TASKS.items() for bar in task.bars]
    head = ["task", "shows", "steps", "measure", "bar (mean over seeds)", "deterministic", "sampled", "verdict"]
    parts = [HEAD, "## Bars\n", table(head, bars)]
    for name, task in TASKS.items():
        groups = {NAMES[algorithm]: select(name, algorithm) for algorithm in NAMES}
        groups[f"{NAMES[OURS]}, 2 ranks"] = select(name, OURS, TWO_RANKS)
        groups = {label: group for label, group in groups.items() if group}
        trials = sorted({result.trial for result in results if result.task == name} - {"", TWO_RANKS})
        if groups or trials:
            parts.append(f"## {name}\n\n`{task.env}`: {task.claim}. {references(task)}\n")
        if groups:
            parts.append(table(SUMMARY_HEAD, [summary_row(label, group) for label, group in groups.items()]))
            parts.append(f"![learning curves](images/learning/{name}.png)\n")
        if groups and plots:
            plot(name, task, groups, plots / f"{name}.png")
        if trials:
            dropped = {trial: select(name, OURS, trial) for trial in trials}
            rows = [summary_row(f"{trial}: `{group[0].overrides}`", group) for trial, group in dropped.items()]
            parts.append("Trials, and what they set over the preset of that day:\n\n" + table(SUMMARY_HEAD, rows))
    return "\n".join(parts)


def references(task: Task) -> str:
    return "; ".join(f"{name} {number(score)}" for name, score in task.references.items()) + "."


def main() -> None:
    images = DOCS / "images" / "learning"
    images.mkdir(parents=True, exist_ok=True)
    (DOCS / "results.md").write_text(render(load(), images))


if __name__ == "__main__":
    main()
