"""The speed benchmarks run and measure correctly. The CUDA benchmark is tested with a stand-in on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch as th

from benchmarks.speed import gpu
from benchmarks.speed.workloads import count_operations
from tests.support.python_graph import PythonGraph

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> list[dict]:
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_time_of_a_run_by_part():
    options = ["--steps", "320", "--hyperparams", "training_ratio:32", "batch_length:8"]
    (line,) = run("benchmarks.speed.end_to_end", "--env", "CartPole-v1", *options)
    assert sum(line["shares"].values()) == pytest.approx(1.0, abs=1e-3)
    assert line["updates"] > 50
    # The time of the updates matches their number and duration, and no part is missing.
    assert line["shares"]["update"] * line["seconds"] == pytest.approx(line["updates"] * line["seconds_per_update"], rel=0.02)
    assert 0.5 < line["update_and_environment"] < 1.0
    assert all(
        line["shares"][part] > 0 for part in ("environment", "acting", "replay add", "replay sample", "latents", "update")
    )


def test_scaling_benchmark():
    lines = run("benchmarks.speed.scaling", "--preset", "debug", "--iterations", "2")
    assert [line["ranks"] for line in lines] == [1, 2]
    parameters = 7_000  # about the size of the debug model
    for line in lines:
        assert line["gradient_bytes"] == pytest.approx(4 * parameters, rel=0.1)
        assert 0 < line["reduction"] < line["together"]
        assert line["communication_share"] == pytest.approx(line["reduction"] / line["together"], abs=2e-4)


@pytest.fixture
def stand_in(monkeypatch):
    """Run ``gpu.py`` on the CPU."""

    def milliseconds(function, calls=20, warm_ups=3):
        return count_operations(function)[0]  # in place of a time, which other processes would change

    monkeypatch.setattr(gpu, "DEVICE", th.device("cpu"))
    monkeypatch.setattr(gpu, "CudaGraph", lambda _: PythonGraph())
    monkeypatch.setattr(gpu, "milliseconds", milliseconds)
    make = gpu.make_update
    monkeypatch.setattr(gpu, "make_update", lambda *args, compile_steps=False, compile_objective=False: make(*args))  # slow


def test_the_cuda_benchmark_compares_captured_updates(stand_in):
    assert gpu.check_replay_equals_plain("debug") < 1e-6


def test_the_cuda_benchmark_detects_a_frozen_learning_rate(stand_in, monkeypatch):
    monkeypatch.setattr("sb3_dreamer.common.optimizers.LaProp.sync_lr", lambda self: None)
    with pytest.raises(AssertionError):
        gpu.check_replay_equals_plain("debug")


def test_the_cuda_benchmark_times_every_part(stand_in):
    parts = gpu.split("debug", "fp32")
    assert 0 < parts["encode"] < parts["observe_with_encode"] < parts["loss_and_gradient"]
    assert parts["encode"] < parts["world_model_loss"] and parts["encode"] < parts["whole_loss"] < parts["loss_and_gradient"]
    assert set(gpu.acting("debug")) == {"eager_1_ms", "recorded_1_ms", "eager_16_ms", "recorded_16_ms"}
    times = gpu.feed("debug", rows=300)
    assert set(times) == {"update_alone_ms", "with_memory_replay_ms", "with_device_replay_ms"}
    assert min(times.values()) > 0
