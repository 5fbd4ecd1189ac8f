"""The pages of results: they match the files, runs are matched to presets by value, and verdicts are right."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest

from benchmarks.learning import harness, presets, report
from benchmarks.learning.results import Result, load
from benchmarks.learning.tasks import TASKS, Bar, Task

ROOT = Path(__file__).parent.parent


def test_the_pages_are_the_report():
    results = load()
    for page, render in report.PAGES.items():
        assert (ROOT / "docs" / page).read_text() == render(results), "python -m benchmarks.learning.report"


# ---- settings of a run and the current preset ----


def head(**changes) -> dict:
    """The first line of a run with the current preset, with changes."""
    task, preset = TASKS["cartpole"], presets.find_preset(TASKS["cartpole"], "dreamerv3")
    return dict(task="cartpole", algorithm="dreamerv3", steps=task.steps, preset={**preset, **changes})


def differences(line: dict) -> list[str]:
    return presets.find_differences(TASKS[line["task"]], json.loads(json.dumps(line)))


def test_settings_are_compared_by_value():
    assert differences(head()) == []
    preset = head()["preset"]
    assert differences(head(batch_size=float(preset["batch_size"]), n_timesteps=1)) == []
    assert differences(head(ent_coef=0.5, gamma=preset["gamma"])) == [f"ent_coef: {preset['ent_coef']} -> 0.5"]
    assert differences(head(learning_rate=1e-3)) == ["learning_rate: lin_1e-3 -> 0.001"]
    assert differences(head(seed_of_dreams=[1, 2])) == ["seed_of_dreams: not set -> [1, 2]"]
    inner = {name: value for name, value in preset["policy_kwargs"].items() if name != "deter"}
    assert differences(head(policy_kwargs=inner)) == [f"policy_kwargs.deter: {preset['policy_kwargs']['deter']} -> not set"]
    assert differences({**head(), "ranks": 2, "steps": 5}) == ["n_timesteps: 10000 -> 5", "ranks: 1 -> 2"]
    assert presets.flatten(OrderedDict(a=(1, (2.0,)), b={})) == dict(a=[1, [2]], b={})


@pytest.mark.parametrize(
    "task, algorithm", [("cartpole", "ppo"), ("tmaze4", "recurrentppo"), ("dmc_walker_walk", "dreamerv3")]
)
def test_a_run_has_the_preset_that_the_report_expects(task, algorithm):
    """RL Zoo's presets, our presets for the baselines, and a file with a default for all environments."""
    if TASKS[task].package:
        pytest.importorskip(TASKS[task].env.split("/")[0])
    run = harness.Run(task, algorithm, 0, TASKS[task].steps, "", {}, Path())
    model, _, preset = harness.build(run)
    assert differences(harness.describe(run, model, preset)) == []


def test_pages_show_runs_by_their_settings_not_by_their_names():
    results = [
        made_up([10.0, 60.0], seed=0),
        made_up([20.0], seed=0)._replace(trial="stopped"),
        made_up([30.0, 70.0], seed=1)._replace(trial="tried"),
        made_up([40.0, 80.0], seed=2)._replace(differences=["gamma: 0.99 -> 0.9"]),
    ]
    results[2].lines[0]["commit"] += "+"
    today, trials = report.render_curves(results), report.render_trials(results)
    assert "| DreamerV3 | 0, 1+ |" in today and "Not run" not in today
    assert "| dreamerv3-stopped | none, but stopped early | 0 |" in trials
    assert "| dreamerv3 | `gamma: 0.99 -> 0.9` | 2 |" in trials and "tried" not in trials
    assert "| not run with today's preset | 0 |" in report.render(results[3:])
    only_trials = report.render_curves(results[3:])
    assert "Not run with today's preset: DreamerV3. See [trials](trials.md#cartpole)." in only_trials


def test_a_seed_that_was_run_twice_counts_once():
    group = [made_up([0.9]), made_up([0.7]), made_up([0.5], seed=1), made_up([0.6], seed=2)]
    assert verdict_of(Bar("last", must=0.6), group) == ("0.63 (0.50 to 0.80)", "met", 3)


# ---- verdicts, on synthetic results ----

TASK = Task("claim", "CartPole-v1", steps=1000, every=250, episodes=20, bars=(), references={"random": 25})


def verdict_of(bar: Bar, group: list[Result]) -> tuple[str, str, int]:
    """:return: score, verdict and number of seeds"""
    cells = dict(zip(report.BAR_HEAD, report.bar_row("cartpole", TASK, bar, group), strict=True))
    return cells["DreamerV3"], cells["verdict"], cells["seeds"]


def made_up(returns: list[float], seed: int = 0, complete: bool = True) -> Result:
    lines = [
        dict(
            steps=252 * (k + 1),
            updates=k,
            deterministic=value,
            sampled=value - 1,
            train_cpu_s=1.0,
            complete=complete and k == len(returns) - 1,
            commit="abc1234",
        )
        for k, value in enumerate(returns)
    ]
    return Result("cartpole", "dreamerv3", "", seed, [], lines)


@pytest.mark.parametrize(
    "bar, score",
    [
        (Bar("best", must=400), "500"),
        (Bar("best", must=400, steps=500), "60.0"),  # a grid of four environments ends at 504
        (Bar("last", must=400), "400"),
        (Bar("last three", must=400), "60.0"),
    ],
)
def test_measures(bar, score):
    group = [made_up([10.0, 60.0, 500.0, 400.0], seed) for seed in range(3)]
    verdict = "met" if float(score) >= 400 else "**missed**"
    assert verdict_of(bar, group) == (f"{score} ({score} to {score})", verdict, 3)


def test_verdicts():
    bar = Bar("last", must=0.6, aim=0.9)
    groups = {"aim met": [0.8, 0.9, 1.0], "met": [0.5, 0.9, 1.0], "**missed**": [0.5, 0.5, 0.6]}
    for verdict, scores in groups.items():
        group = [made_up([score], seed) for seed, score in enumerate(scores)]
        assert verdict_of(bar, group)[1:] == (verdict, 3)
    assert verdict_of(bar, [made_up([0.9])]) == ("0.90", "aim met", 1)
    assert verdict_of(bar, []) == ("", "not run with today's preset", 0)
    assert verdict_of(bar, [made_up([1.0], complete=False)])[1] == "aim met (unfinished)"


def test_the_best_of_sb3_is_taken_by_the_same_measure_and_steps():
    def theirs(algorithm: str, returns: list[float], seed: int) -> Result:
        return made_up(returns, seed)._replace(algorithm=algorithm)

    results = [theirs("ppo", [90.0, 10.0], 0), theirs("ppo", [70.0, 20.0], 1), theirs("dqn", [50.0, 40.0], 0)]
    results.append(made_up([500.0]))  # ours
    assert report.best_of_sb3("small_cartpole", Bar("best", must=1), results) == "80.0 (PPO)"
    assert report.best_of_sb3("cartpole", Bar("last", must=1), results) == "40.0 (DQN)"
    assert report.best_of_sb3("pendulum", Bar("last", must=1), results) == "not run"


def test_training_returns_are_compared_with_the_published_curve():
    """The window ends at the published point. Seeds that have not reached it are not counted."""
    task = TASKS["dmc_cartpole_swingup"]

    def result(seed: int, level: float, until: int = 50_000) -> Result:
        training = [
            [step, level if step > 40_000 else 0.0 if step <= 15_000 else 250.0] for step in range(500, until + 1, 500)
        ]
        line = dict(steps=until, training=training, train_cpu_s=60.0, complete=until == 50_000, commit="abc")
        return Result("dmc_cartpole_swingup", "dreamerv3", "", seed, [], [line])

    rows = report.published_rows(task, [result(0, 400.0), result(1, 480.0), result(2, 0.0, until=25_000)])
    assert [row[:2] for row in rows] == [["50,000", "250 (3)"], ["100,000", "440 (2)"]]
    assert rows[1][2:] == ["516 +- 15.8 (5)", "431", "above the bound"] and rows[0][3:] == ["245", "above the bound"]
    assert report.published_rows(task, [result(0, 400.0)])[1][4] == "**below the bound**"  # 405 for one seed
    assert report.published_rows(TASKS["cartpole"], [result(0, 400.0)]) == []
    overview = report.published_overview([result(0, 500.0)._replace(differences=[])])
    assert [row[4:6] for row in overview] == [["", ""], ["677 +- 33 (3)", "835 +- 8 (3)"]]


def test_a_run_without_evaluations_is_shown_with_its_training_returns():
    task = "vision_walker_stand"
    training = [[step, 600.0] for step in range(100, 50_001, 100)]
    line = dict(steps=50_000, updates=1, training=training, train_cpu_s=60.0, complete=True, commit="abc")
    result = Result(task, "dreamerv3", "", 0, [], [line])
    other = result._replace(trial="lr", differences=["learning_rate: not set -> 0.1"])
    for page in (report.render([result]), report.render_curves([result]), report.render_trials([other])):
        assert "| 50,000 | 600 (1) | 674 +- " in page and "| 507 | above the bound |" in page


def test_a_task_without_a_target_is_only_reported():
    assert verdict_of(Bar("best"), [made_up([30.0], seed) for seed in range(3)]) == ("30.0 (30.0 to 30.0)", "reported", 3)
