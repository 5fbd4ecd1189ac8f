"""One run of the learning benchmark: build the model from its preset, train, evaluate, save checkpoints, resume."""

import argparse
import contextlib
import functools
import importlib
import io
import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import rl_zoo3
import stable_baselines3
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

import sb3_dreamer
from benchmarks.learning import checkpoint
from benchmarks.learning.presets import ALGORITHMS, ROOT, find_presets
from benchmarks.learning.tasks import TASKS
from sb3_dreamer.common.distributed.launch import is_launched
from sb3_dreamer.common.random_states import get_random_states, set_random_states
from sb3_dreamer.zoo import plugin

RESULTS = ROOT / "benchmarks" / "results" / "learning"
CHECKPOINT_SECONDS = 60.0


class RefusedRun(RuntimeError):
    """A run that would corrupt its result file."""


class Run(NamedTuple):
    """One run and its result file."""

    task: str
    algorithm: str
    seed: int
    steps: int
    trial: str
    hyperparams: dict[str, Any]
    folder: Path
    device: str = "cpu"

    @property
    def path(self) -> Path:
        name = f"{self.algorithm}-{self.trial}" if self.trial else self.algorithm
        return self.folder / self.task / f"{name}-seed{self.seed}.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path.with_suffix(".checkpoint")

    def written(self) -> list[dict[str, Any]]:
        """
        :return: the lines of the file; the first one describes the run
        :raises RefusedRun: if the last line is incomplete
        """
        text = self.path.read_text() if self.path.exists() else ""
        if text and not text.endswith("\n"):
            raise RefusedRun(f"{self.path} ends with an incomplete line: remove that line")
        return [json.loads(line) for line in text.splitlines()]

    def is_complete(self) -> bool:
        """Whether the last evaluation has been written."""
        lines = self.written()
        return len(lines) > 1 and bool(lines[-1]["complete"])

    def append(self, lines: list[str]) -> None:
        """
        Append the lines that the file does not contain. Existing lines are kept, even if a resumed run repeats an evaluation.

        :param lines: all lines of the run so far; the first one describes the run
        """
        head, *evaluations = lines
        written = self.written()
        steps = {line["steps"] for line in written[1:]}
        missing = [line for line in evaluations if json.loads(line)["steps"] not in steps]
        with self.path.open("a") as file:
            file.write("".join(f"{line}\n" for line in ([] if written else [head]) + missing))


# ---- model ----


def build(run: Run) -> tuple[BaseAlgorithm, VecEnv, dict[str, Any]]:
    """:return: model, evaluation environments (both made by RL Zoo) and the preset"""
    plugin.register_all()
    task = TASKS[run.task]
    if task.package:
        importlib.import_module(task.package)
    with tempfile.TemporaryDirectory() as log_folder, contextlib.redirect_stdout(io.StringIO()):
        presets = Path(log_folder) / "presets.yml"
        presets.write_text(yaml.safe_dump(find_presets(task, run.algorithm)))
        manager = ExperimentManager(
            argparse.Namespace(),
            ALGORITHMS[run.algorithm],
            task.env,
            log_folder,
            n_timesteps=run.steps,
            eval_freq=-1,
            hyperparams=run.hyperparams,
            seed=run.seed,
            log_interval=-1,
            verbose=0,
            device=run.device,
            config=str(presets),
        )
        model, preset = manager.setup_experiment()
        # The same environments without Monitor's files, because open files cannot be saved in a checkpoint.
        model.set_env(manager.create_envs(manager.n_envs, no_log=True))
        eval_env = manager.create_envs(task.eval_envs, eval_env=True, no_log=True)
    return model, eval_env, dict(preset)


def describe(run: Run, model: BaseAlgorithm, preset: dict[str, Any]) -> dict[str, Any]:
    """:return: the first line of the file"""
    modules = dict(sb3_dreamer=sb3_dreamer, torch=th, stable_baselines3=stable_baselines3)
    modules |= dict(gymnasium=gymnasium, rl_zoo3=rl_zoo3, numpy=np)
    return dict(
        task=run.task,
        algorithm=run.algorithm,
        seed=run.seed,
        trial=run.trial,
        env=TASKS[run.task].env,
        steps=run.steps,
        episodes=TASKS[run.task].episodes,
        preset=preset,
        overrides=run.hyperparams,
        ranks=int(os.environ["WORLD_SIZE"]) if is_launched() else 1,
        device=device_name(model.device),
        parameters=sum(parameter.numel() for parameter in model.policy.parameters()),
        versions={"python": platform.python_version(), **{name: module.__version__ for name, module in modules.items()}},
    )


def device_name(device: th.device) -> str:
    """:return: "cpu", or the name of the card"""
    return th.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def commit() -> str:
    """
    Evaluated once per process, at its first run, because the checkout may change while the process runs.

    :return: the current commit, with a + if the sources differ from it
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    revision = git("rev-parse", "--short", "HEAD")
    changed = not revision or git(
        "status", "--porcelain", "--", "sb3_dreamer", "hyperparams", "benchmarks", ":!benchmarks/results"
    )
    return revision + ("+" if changed else "")


def check_sources(allow_dirty: bool = False) -> str:
    """
    :param allow_dirty: accept sources that differ from the last commit
    :return: the commit, see :func:`commit`
    :raises RefusedRun: if the sources differ
    """
    revision = commit()
    if revision.endswith("+") and not allow_dirty:
        raise RefusedRun("The sources differ from the last commit: commit the changes, or pass --allow-dirty")
    return revision


def check(run: Run, allow_dirty: bool = False) -> None:
    """
    :param run: run to be started or resumed
    :param allow_dirty: accept sources that differ from the last commit
    :raises RefusedRun: if the sources differ, or the file contains an unfinished run that cannot be resumed
    """
    if run.is_complete() or (is_launched() and os.environ["RANK"] != "0"):
        return  # nothing to do, or not the rank that writes
    check_sources(allow_dirty)
    if run.path.exists() and not run.checkpoint.exists():
        raise RefusedRun(
            f"{run.path} contains an unfinished run without a checkpoint: restore {run.checkpoint.name}, choose another "
            "--trial or --results, or move the file away"
        )


# ---- training and evaluation ----


class LastValues(KVWriter):
    """Keep the values that were logged last."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], *_: Any, **__: Any) -> None:
        self.values = dict(key_values)

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class Progress:
    """Progress of a run; part of its checkpoint."""

    lines: list[str] = field(default_factory=list)
    episodes: list[tuple[int, float]] = field(default_factory=list)  # (environment steps, training return) since the last line
    train_cpu: float = 0.0
    train_wall: float = 0.0
    eval_cpu: float = 0.0


class Recorder(BaseCallback):
    """
    Evaluate at fixed points without affecting training, and save checkpoints between rollouts.

    :param run: the run
    :param eval_env: environments of the evaluations
    :param progress: of the run so far
    :param minutes: save a checkpoint and stop after this time
    """

    def __init__(self, run: Run, eval_env: VecEnv, progress: Progress, minutes: float = float("inf")):
        super().__init__()
        self.deadline = time.perf_counter() + 60 * minutes
        self.is_paused = False
        self.run, self.task, self.eval_env, self.progress = run, TASKS[run.task], eval_env, progress
        self.is_over = False
        self.saved_lines, self.saved_at = len(progress.lines), time.perf_counter()
        self.restart_clock()

    def restart_clock(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop_clock(self) -> None:
        """Add the time since the clock was started to the training time."""
        self.progress.train_cpu += time.process_time() - self.cpu
        self.progress.train_wall += time.perf_counter() - self.wall
        self.restart_clock()

    def _on_rollout_start(self) -> None:
        if is_launched():
            return  # the state of other ranks cannot be saved here
        now = time.perf_counter()
        self.is_paused = now > self.deadline
        # On CUDA only before a pause: the replay buffer may be large.
        is_due = now - self.saved_at > CHECKPOINT_SECONDS or len(self.progress.lines) > self.saved_lines
        if self.is_paused or (is_due and self.run.device == "cpu"):
            self.save()

    def save(self) -> None:
        """Save everything that the rest of the run depends on. The file is replaced atomically."""
        self.stop_clock()
        checkpoint.save(self.run.checkpoint, self.model, self.run.device, vars(self.progress))
        self.saved_lines, self.saved_at = len(self.progress.lines), time.perf_counter()
        self.restart_clock()

    def _on_step(self) -> bool:
        if self.is_paused:
            return False
        ends = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.progress.episodes += [(self.num_timesteps, float(value)) for value in ends]
        if self.num_timesteps >= self.task.every * len(self.progress.lines):
            self.stop_clock()
            limit = self.task.train_seconds
            is_late = limit is not None and self.progress.train_cpu > limit
            self.is_over = self.num_timesteps >= self.run.steps or is_late
            self.evaluate()
            self.restart_clock()
        return not self.is_over

    def evaluate(self) -> None:
        """Evaluate and append one line to the file."""
        started, randomness = time.process_time(), get_random_states(self.model.device)
        line: dict[str, Any] = dict(steps=self.num_timesteps, updates=self.model._n_updates)
        if self.task.published:
            line["training"] = self.progress.episodes
        self.progress.episodes = []
        for name, deterministic in (("deterministic", True), ("sampled", False)) if self.task.episodes else ():
            returns = self.returns(deterministic)
            line |= {name: round(float(np.mean(returns)), 4), f"{name}_std": round(float(np.std(returns)), 4)}
        set_random_states(randomness, self.model.device)
        self.progress.eval_cpu += time.process_time() - started
        for name in ("train_cpu", "train_wall", "eval_cpu"):
            line[f"{name}_s"] = round(getattr(self.progress, name), 1)
        self.progress.lines.append(json.dumps(line | dict(complete=self.is_over, commit=commit(), metrics=self.metrics())))
        self.run.append(self.progress.lines)
        print(self.run.path.relative_to(self.run.folder), line, flush=True)

    def returns(self, deterministic: bool) -> list[float]:
        """:return: returns of the evaluation, which uses the same episodes each time"""
        self.eval_env.seed(10_000)
        th.manual_seed(10_000)
        np.random.seed(10_000)
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.model.get_env(), self.eval_env)
        episodes = self.task.episodes
        returns, _ = evaluate_policy(
            self.model, self.eval_env, episodes, deterministic=deterministic, return_episode_rewards=True
        )
        return list(returns)

    def metrics(self) -> dict[str, float]:
        """:return: logged values; for DreamerV3 means over the updates since the last line"""
        self.model.dump_logs()
        (values,) = self.model.logger.output_formats
        return {
            name: float(f"{value:.4g}")
            for name, value in values.values.items()
            if isinstance(value, int | float | np.number) and not name.startswith(("time/", "memory/"))
        }


def execute(run: Run, allow_dirty: bool = False, minutes: float = float("inf")) -> None:
    """
    Start or resume a run, and complete it or pause it. Runs with several ranks have no checkpoint to resume from. On a GPU,
    there is one if the run was paused. Environments are then reset, so it does not continue with the same numbers.

    :param run: run to execute
    :param allow_dirty: accept sources that differ from the last commit
    :param minutes: pause after this time
    :raises RefusedRun: see :func:`check`
    """
    check(run, allow_dirty)
    if run.is_complete():
        run.checkpoint.unlink(missing_ok=True)
        return
    th.set_num_threads(1)
    run.path.parent.mkdir(parents=True, exist_ok=True)
    model, eval_env, preset = build(run)
    if run.checkpoint.exists():
        progress = Progress(**checkpoint.load(run.checkpoint, model))
    else:
        progress = Progress([json.dumps(describe(run, model, preset), default=str)])
        model.set_logger(Logger(None, [LastValues()]))
    recorder = Recorder(run, eval_env, progress, minutes)
    model.learn(run.steps - model.num_timesteps, callback=recorder, log_interval=None, reset_num_timesteps=False)
    if run.is_complete():
        run.checkpoint.unlink(missing_ok=True)
