"""Where the preset of a task is, and how the settings of a run differ from it."""

import functools
from pathlib import Path
from typing import Any

import rl_zoo3
import yaml

from benchmarks.learning.tasks import Task

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OURS = "dreamerv3"
# As the command line says it: as RL Zoo does.
ALGORITHMS = {OURS: "dreamerv3", "ppo": "ppo", "sac": "sac", "dqn": "dqn", "recurrentppo": "ppo_lstm"}
NOT_SET = "not set"


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """:return: the content of a YAML file"""
    return yaml.safe_load(path.read_text())


def find_presets(task: Task, algorithm: str) -> dict[str, Any]:
    """:return: presets by environment, from the file that has the one of the task"""
    if task.config:
        return read(ROOT / task.config)
    if algorithm == OURS:
        return read(ROOT / "hyperparams" / "dreamerv3.yml")
    baselines = read(HERE / "baselines.yml").get(algorithm, {})
    zoo = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{ALGORITHMS[algorithm]}.yml"
    return baselines if task.env in baselines else read(zoo)


def find_preset(task: Task, algorithm: str) -> dict[str, Any]:
    """:return: the preset of the task today"""
    presets = find_presets(task, algorithm)
    return presets[task.env if task.env in presets else "default"]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """:return: ``a.b: value`` for every value of a dict inside a dict, tuples as lists"""
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
    Compare a run with the preset of its task today, value by value.

    :param task: what was trained on
    :param head: the first line of the run's file: ``preset`` holds all settings as they were run, overrides included
    :return: ``key: value of the preset -> value of the run``, none if they are equal
    """
    preset, run = find_preset(task, head["algorithm"]), head["preset"]
    # The task decides how long a run is, not the preset.
    today = flatten({**preset, "n_timesteps": task.steps, "ranks": 1})
    as_run = flatten({**run, "n_timesteps": head["steps"], "ranks": head.get("ranks", 1)})
    pairs = {name: (today.get(name, NOT_SET), as_run.get(name, NOT_SET)) for name in sorted(today | as_run)}
    return [f"{name}: {before} -> {after}" for name, (before, after) in pairs.items() if before != after]
