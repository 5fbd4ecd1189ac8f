"""The benchmarks run: a killed or paused learning run resumes with the same results."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning import deterministic, harness
from benchmarks.learning.tasks import TASKS
from benchmarks.speed import soak
from sb3_dreamer import DreamerV3
from sb3_dreamer.presets import hyperparams_dir
from tests.support.helpers import TINY

ROOT = Path(__file__).parent.parent
SMALL = ["training_ratio:16", "policy_kwargs:dict(deter=16,hidden=8,units=8,stoch=2,classes=4,blocks=2)"]
COMMAND = [
    sys.executable,
    "-m",
    "benchmarks.learning.run",
    "tmaze4",
    "--seeds",
    "3",
    "--steps",
    "1500",
    "--allow-dirty",
    "--trial",
    "small",
]
# Values that depend on the machine.
TIMES = ("train_cpu_s", "train_wall_s", "eval_cpu_s")


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "--hyperparams", *SMALL, "--results", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)


def read(folder: Path) -> list[dict]:
    path = folder / "tmaze4" / "dreamerv3-small-seed3.jsonl"
    return [without_times(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_times(line: str) -> dict:
    return {name: value for name, value in json.loads(line).items() if name not in TIMES}


def test_a_killed_run_resumes_with_the_same_results(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(120) == 0
    process = start(killed)
    checkpoint = killed / "tmaze4" / "dreamerv3-small-seed3.checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not read(killed)[-1]["complete"]
    assert start(killed).wait(120) == 0
    assert not checkpoint.exists()
    head, *lines = read(killed)
    assert [head, *lines] == read(whole)
    assert head["preset"]["training_ratio"] == 16 and head["overrides"]["training_ratio"] == 16
    assert [line["steps"] for line in lines] == [500, 1000, 1500]
    assert [line["complete"] for line in lines] == [False, False, True]
    assert {"world_model/reward_loss", "world_model/dynamics_loss", "actor_critic/entropy"} <= lines[-1]["metrics"].keys()

    content = (whole / "tmaze4" / "dreamerv3-small-seed3.jsonl").read_text()
    assert start(whole).wait(120) == 0  # already complete
    assert (whole / "tmaze4" / "dreamerv3-small-seed3.jsonl").read_text() == content


@pytest.mark.parametrize(
    "task, algorithm, hyperparams",
    [
        ("tmaze4", "recurrentppo", {}),  # normalised by VecNormalize
        ("pendulum", "sac", dict(learning_starts=50, train_freq=64, gradient_steps=1)),
        ("pixelcatch16", "dreamerv3", dict(training_ratio=2)),  # transposed by VecTransposeImage
    ],
)
def test_other_runs_resume_too(task, algorithm, hyperparams, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setitem(harness.TASKS, task, TASKS[task]._replace(every=200, episodes=2))
    runs = [harness.Run(task, algorithm, 0, 600, "short", hyperparams, tmp_path / name) for name in ("whole", "stopped")]
    harness.execute(runs[0], allow_dirty=True)
    evaluate = harness.Recorder.evaluate

    def stop_at_the_third(recorder):
        if recorder.num_timesteps >= 600:
            raise KeyboardInterrupt
        evaluate(recorder)

    monkeypatch.setattr(harness.Recorder, "evaluate", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        harness.execute(runs[1], allow_dirty=True)
    monkeypatch.setattr(harness.Recorder, "evaluate", evaluate)
    harness.execute(runs[1], allow_dirty=True)
    whole, stopped = ([without_times(line) for line in run.path.read_text().splitlines()] for run in runs)
    assert len(whole) == 4 and whole == stopped


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_paused_run_resumes(device, tmp_path, monkeypatch):
    """On CUDA (here without a GPU) only a pause saves a checkpoint, without environments."""
    pauses, saved = [150, 250], []
    build, save, start_rollout = harness.build, harness.Recorder.save, harness.Recorder._on_rollout_start

    def pause(recorder):
        if pauses and recorder.num_timesteps >= pauses[0]:
            pauses.pop(0)
            recorder.deadline = 0.0
        start_rollout(recorder)

    monkeypatch.setattr(harness, "build", lambda run: build(run._replace(device="cpu")))
    monkeypatch.setattr(harness.Recorder, "_on_rollout_start", pause)
    monkeypatch.setattr(harness.Recorder, "save", lambda recorder: (saved.append(recorder.num_timesteps), save(recorder)))
    monkeypatch.setitem(harness.TASKS, "tmaze4", TASKS["tmaze4"]._replace(every=100, episodes=0, published="dmc/none"))
    run = harness.Run("tmaze4", "dreamerv3", 0, 400, "short", dict(training_ratio=4), tmp_path, device)
    for ends_at in (100, 200, 400):
        harness.execute(run, allow_dirty=True)
        assert run.written()[-1]["steps"] == ends_at
        assert run.checkpoint.exists() != run.is_complete() == (ends_at == 400)
    _, *lines = run.written()
    assert [line["steps"] for line in lines] == [100, 200, 300, 400]
    assert not any("deterministic" in line for line in lines)
    episodes = [episode for line in lines for episode in line["training"]]
    assert [step for step, _ in episodes] == sorted(step for step, _ in episodes)
    # An episode has five steps, and there are four environments.
    assert 80 - (0 if device == "cpu" else 8) <= len(episodes) <= 80
    if device == "cuda":
        assert saved == [152, 252]
        return
    whole = run._replace(folder=tmp_path / "whole")
    harness.execute(whole, allow_dirty=True)
    assert [*map(without_times, run.path.read_text().splitlines())] == [
        *map(without_times, whole.path.read_text().splitlines())
    ]


@pytest.fixture
def short_run(tmp_path, monkeypatch) -> harness.Run:
    """Evaluations at 200, 400 and 600 steps, checkpoints at 0, 256 and 512."""
    monkeypatch.setattr(harness, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setitem(harness.TASKS, "tmaze4", TASKS["tmaze4"]._replace(every=200, episodes=2))
    return harness.Run("tmaze4", "recurrentppo", 0, 600, "short", {}, tmp_path)


def test_lines_are_kept_when_an_evaluation_is_repeated(short_run, monkeypatch):
    save = harness.Recorder.save

    def die_before_the_third(recorder):
        if recorder.num_timesteps >= 512:
            raise KeyboardInterrupt
        save(recorder)

    monkeypatch.setattr(harness.Recorder, "save", die_before_the_third)
    with pytest.raises(KeyboardInterrupt):
        harness.execute(short_run, allow_dirty=True)
    monkeypatch.setattr(harness.Recorder, "save", save)
    assert [line["steps"] for line in short_run.written()] == [600, 200, 400]
    marked = short_run.path.read_text().replace('"steps": 400', '"mark": 1, "steps": 400')
    short_run.path.write_text(marked)
    harness.execute(short_run, allow_dirty=True)  # from step 256: the evaluation at 400 is repeated
    assert [line["steps"] for line in short_run.written()] == [600, 200, 400, 600]
    assert short_run.path.read_text().startswith(marked) and short_run.is_complete()
    assert not short_run.checkpoint.exists()


def test_an_unfinished_run_without_a_checkpoint_is_rejected(short_run):
    short_run.path.parent.mkdir()
    content = '{"steps": 600}\n{"steps": 200, "complete": false}\n'
    short_run.path.write_text(content)
    with pytest.raises(harness.RefusedRun, match=rf"{short_run.path}.*\.checkpoint.*--trial or --results"):
        harness.execute(short_run, allow_dirty=True)
    command = [sys.executable, "-m", "benchmarks.learning.run", "tmaze4", "--algo", "recurrentppo", "--seeds", "0"]
    command += ["--trial", "short", "--hyperparams", "n_steps:8", "--allow-dirty", "--results", str(short_run.folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and str(short_run.path) in result.stderr and "Traceback" not in result.stderr
    assert short_run.path.read_text() == content


def test_an_incomplete_line_is_rejected(short_run):
    short_run.path.parent.mkdir()
    short_run.path.write_text('{"steps": 600}\n{"steps": 200, "comp')
    with pytest.raises(harness.RefusedRun, match="ends with an incomplete line"):
        harness.execute(short_run, allow_dirty=True)


def test_uncommitted_sources_are_rejected(short_run, monkeypatch):
    monkeypatch.setattr(harness, "commit", lambda: "abc1234+")
    with pytest.raises(harness.RefusedRun, match="--allow-dirty"):
        harness.execute(short_run)
    monkeypatch.setattr(harness, "commit", lambda: "abc1234")
    harness.check(short_run)
    assert not short_run.path.exists()


def test_comparison_of_deterministic_ways_rejects_them_and_stores_the_commit(tmp_path, monkeypatch, capsys):
    def build(_):
        return DreamerV3("MlpPolicy", "CartPole-v1", seed=0, **TINY), make_vec_env("CartPole-v1", 2), None

    for name, value in (("RESULTS", tmp_path), ("N_EPISODES", 2), ("build", build)):
        monkeypatch.setattr(deterministic, name, value)
    monkeypatch.setattr(harness, "commit", lambda: "abc1234+")
    command = ["deterministic", "cartpole", "--seeds", "5", "--steps", "80"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=r"The sources differ from the last commit: .*--allow-dirty"):
        deterministic.main()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", [*command, "--allow-dirty", "--report"])
    deterministic.main()
    data = json.loads((tmp_path / "cartpole_seed5.json").read_text())
    assert (data["task"], data["seed"], data["episodes"], data["commit"]) == ("cartpole", 5, 2, "abc1234+")
    assert [line["steps"] for line in data["evaluations"]] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert "| cartpole | 5 |" in capsys.readouterr().out
    monkeypatch.setattr(deterministic, "build", None)
    monkeypatch.setattr(sys, "argv", command)
    deterministic.main()  # a complete run is skipped, whatever the sources


def test_benchmarks_need_no_tests_and_no_paths():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"^\s*(from|import) tests\b", source, flags=re.MULTILINE), path
        # TorchRL's recipe consists of scripts that import each other.
        assert "sys.path" not in source or path.name == "torchrl_update.py", path


def test_a_variant_needs_a_name():
    command = [*COMMAND[:-2], "--hyperparams", "gamma:0.9"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "--hyperparams and --trial must be given together" in result.stderr


def test_several_ranks_cannot_pause():
    command = [*COMMAND[:-2], "--minutes", "1"]
    environment = {**os.environ, **dict(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "--minutes needs one rank" in result.stderr


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_an_environment_and_presets(name):
    env_id = TASKS[name].env
    if TASKS[name].package:
        pytest.importorskip(TASKS[name].package)
    if env_id.startswith("dm_control/"):
        pytest.importorskip("dm_control")  # RL Zoo installs shimmy without it
    gymnasium.make(env_id).close()
    config = TASKS[name].config
    ours = yaml.safe_load((ROOT / config if config else hyperparams_dir() / "dreamerv3.yml").read_text())
    assert env_id in ours or "default" in ours
    if env_id.startswith("sb3_dreamer/"):
        others = yaml.safe_load((ROOT / "benchmarks" / "learning" / "baselines.yml").read_text())
        assert sum(env_id in presets for presets in others.values()) >= 1 or "pixelcatch16" in name


UPDATE_KEYS = {
    "preset",
    "threads",
    "iterations",
    "seconds_per_update",
    "cpu_seconds_per_update",
    "min_cpu_seconds",
    "compile_seconds",
    "parameters",
    "gflop",
    "dispatched_ops",
    "peak_rss_mb",
}


def printed(*command: str) -> list[dict]:
    """Run a benchmark and parse its lines of JSON."""
    command = [sys.executable, "-m", *command]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_speed_of_the_update_is_measured_for_each_variant():
    lines = printed("benchmarks.speed.update_time", "--preset", "debug", "--iterations", "2")
    assert [line["variant"] for line in lines] == ["fast", "plain", "reference"]
    assert all(line.keys() >= UPDATE_KEYS for line in lines)
    fast, plain, reference = lines
    assert fast["parameters"] == reference["parameters"] > 1000
    assert fast["dispatched_ops"] < plain["dispatched_ops"] < reference["dispatched_ops"]
    # All variants need nearly the same FLOP.
    assert fast["gflop"] == pytest.approx(reference["gflop"], rel=0.1)
    assert all(line["min_cpu_seconds"] > 0 for line in lines)


def test_speed_of_acting_and_replay_is_measured():
    small, large = printed("benchmarks.speed.policy_latency", "--preset", "debug", "--iterations", "1")
    assert (small["envs"], large["envs"]) == (1, 16) and 0 < small["step_ms"] < small["predict_ms"]
    (line,) = printed("benchmarks.speed.replay", "--preset", "debug", "--iterations", "1", "--rows", "2000")
    assert {"add_us_per_step", "sample_ms", "write_back_ms", "bytes_per_row"} <= line.keys()
    assert line["bytes_per_row"] > 24 * 4


def test_checkpoints_are_measured(tmp_path):
    (line,) = printed("benchmarks.speed.checkpoints", "--rows", "5000", "--folder", str(tmp_path))
    images = 64 * 64 * 3 / 1e9
    assert 3000 * images < line["complete"]["gb"] < line["buffer_gb"]
    # Rows that the first checkpoint has already are shared; one chunk of 32 MiB is written again.
    assert 1000 * images < line["after_more_rows"]["gb"] < 3500 * images
    assert line["save_replay_buffer"]["gb"] == pytest.approx(line["complete"]["gb"], rel=0.05)
    assert all(line[name]["cpu_s"] > 0 for name in ("complete", "load_checkpoint", "load_replay_buffer"))
    assert not list(tmp_path.iterdir())


def test_a_soak_prints_growth():
    *lines, last = printed("benchmarks.speed.soak", "--minutes", "0.5", "--every", "1")
    assert last["lines"] == len(lines) >= 2
    assert last["memory_mb"][1] == lines[-1]["memory_mb"] > 100 and lines[-1]["updates"] > lines[0]["updates"]
    constant = [{"memory_mb": 100.0, "update_cpu_ms": 10.0}] * 10
    grows = [*constant[:9], {"memory_mb": 110.0, "update_cpu_ms": 20.0}]
    assert soak.summary(constant)["memory_growth"] == soak.summary(constant)["update_growth"] == 0
    assert soak.summary(grows)["memory_growth"] == 0.1 and soak.summary(grows)["update_growth"] == 0.5


def test_storages_of_the_replay_take_turns(tmp_path):
    arguments = ["--rows", "1500", "--iterations", "1", "--frames", "1030", "--folder", str(tmp_path)]
    line, *codecs = printed("benchmarks.speed.replay_storage", *arguments)
    # bytes of a row: image, action 8, reward 4, four flags, deter and stoch of 12m
    assert line["gigabytes"] == pytest.approx(1500 * (64 * 64 * 3 + 8 + 4 + 4 + 2 * 2048 + 32) / 1e9, abs=1e-3)
    for part in ("add", "sample"):
        unit = "us" if part == "add" else "ms"
        ours, theirs = line[f"{part}_disk_{unit}"], line[f"{part}_memory_{unit}"]
        assert line[f"{part}_ratio"] == pytest.approx(ours / theirs, rel=0.05) and theirs > 0
    assert line["sample_disk_cold_wall_ms"] > 0
    assert codecs[0]["codec"] == "zlib level 1" and all(codec["size_ratio"] > 1 for codec in codecs)
