"""Find the preset of a task, and compare the settings of a run with it."""

import functools
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml

from benchmarks.learning.tasks import Task

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OURS = "dreamerv3"
# Name on the command line: name in RL Zoo.
ALGORITHMS = {OURS: "dreamerv3", "ppo": "ppo", "sac": "sac", "dqn": "dqn", "recurrentppo": "ppo_lstm"}
NOT_SET = "not set"


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """:return: the content of a YAML file"""
    return yaml.safe_load(path.read_text())


def find_presets(task: Task, algorithm: str) -> dict[str, Any]:
    """:return: all presets, by environment, of the file with the preset of the task"""
    if algorithm == OURS:
        return read(ROOT / (task.config or "hyperparams/dreamerv3.yml"))
    baselines = read(HERE / "baselines.yml").get(algorithm, {})
    zoo = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{ALGORITHMS[algorithm]}.yml"
    return baselines if task.env in baselines else read(zoo)


def find_preset(task: Task, algorithm: str) -> dict[str, Any]:
    """:return: the current preset of the task"""
    presets = find_presets(task, algorithm)
    others = "atari" if task.env.startswith("ALE/") else "default"
    return presets[task.env if task.env in presets else others]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """:return: nested dicts flattened to ``a.b: value``, tuples as lists"""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = as_lists(value)
    return flat


def as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    return {name: as_lists(item) for name, item in value.items()} if isinstance(value, dict) else value


def find_differences(task: Task, head: dict[str, Any]) -> list[str]:
    """
    Compare the settings of a run with the current preset of its task, value by value.

    :param task: task of the run
    :param head: first line of the run's file: ``preset`` contains all settings of the run, overrides included
    :return: ``key: value of the preset -> value of the run`` for each difference
    """
    preset, run = find_preset(task, head["algorithm"]), head["preset"]
    # The length of a run is set by the task, not by the preset. Published curves are compared at the points that were reached.
    steps = head["steps"] if task.published else task.steps
    today = flatten({**preset, "n_timesteps": steps, "ranks": 1})
    as_run = flatten({**run, "n_timesteps": head["steps"], "ranks": head.get("ranks", 1)})
    pairs = {name: (today.get(name, NOT_SET), as_run.get(name, NOT_SET)) for name in sorted(today | as_run)}
    return [f"{name}: {before} -> {after}" for name, (before, after) in pairs.items() if before != after]
