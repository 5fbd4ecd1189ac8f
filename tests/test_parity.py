"""The suite of published curves for one GPU. Its runs are those of the learning benchmark (``test_benchmarks.py``)."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch as th

from benchmarks import parity
from benchmarks.learning.presets import find_preset
from benchmarks.learning.report import published_rows
from benchmarks.learning.results import Result
from benchmarks.learning.tasks import TASKS

ROOT = Path(__file__).parent.parent
VISION, ATARI = "vision_walker_stand", "atari100k_krull"


def test_every_task_has_published_points_and_the_published_model_size():
    assert len(parity.SUITE) == 6 and parity.SUITE[0] == VISION
    for name in parity.SUITE:
        rows = rows_of(name)
        assert len(rows) >= 3 and rows[-1][0] == ("100,000" if name.startswith("vision") else "400,000")
        size = find_preset(TASKS[name], "dreamerv3")["model_size"]
        assert size == ("12m" if name.startswith("vision") else "200m")
    # One seed, after 50,000 frames.
    bounds = [next(row[3] for row in rows_of(name) if row[0] == "50,000") for name in parity.SUITE[:2]]
    assert bounds == ["507", "203"]


def rows_of(name: str) -> list[list]:
    task = TASKS[name]
    training = [[step, 1.0] for step in range(100, task.steps + 1, 100)]
    line = dict(steps=task.steps, training=training, complete=True, commit="abc")
    return published_rows(task, [Result(name, "dreamerv3", "", 0, [], [line])])


def test_what_a_task_lacks_is_named(monkeypatch):
    monkeypatch.setitem(parity.NEEDS, "atari100k", {"sys": "python", "no_such_module": ".[atari]"})
    assert parity.prepare(ATARI) == "no_such_module: pip install -e '.[atari]'"
    monkeypatch.setitem(parity.NEEDS, "vision", {})
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    tried = []

    def fail(command, env, **_):
        tried.append(env["MUJOCO_GL"])
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(parity.subprocess, "run", fail)
    assert parity.prepare(VISION).startswith("no renderer works: install libegl1") and tried == ["egl", "osmesa"]
    monkeypatch.setattr(
        parity.subprocess, "run", lambda command, env, **_: SimpleNamespace(returncode=env["MUJOCO_GL"] == "egl")
    )
    assert parity.choose_renderer() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert parity.choose_renderer() == "glfw"  # the user's choice


def test_a_piece_ends_with_its_time_and_says_what_is_left(monkeypatch, tmp_path):
    clock, executed = [0.0], []

    def execute(run, minutes):
        executed.append((run.task, run.seed, minutes))
        clock[0] += 60 * min(minutes, 4)

    monkeypatch.setattr(parity, "RESULTS", tmp_path)
    monkeypatch.setattr(parity, "execute", execute)
    monkeypatch.setattr(parity, "prepare", lambda task: "a part" if task == "vision_walker_walk" else None)
    monkeypatch.setattr(parity.time, "monotonic", lambda: clock[0])
    left = parity.run_piece([VISION, "vision_walker_walk", ATARI], [0, 1], 9.0, "cpu")
    assert executed == [(VISION, 0, 9.0), (ATARI, 0, 5.0), (VISION, 1, 1.0)]
    assert left.startswith(f"Left: {VISION} seed 0, vision_walker_walk seed 0") and left.endswith(f"{ATARI} seed 1")


@pytest.mark.skipif(th.cuda.is_available(), reason="without a GPU")
def test_without_a_gpu_it_says_so():
    result = subprocess.run([sys.executable, "-m", "benchmarks.parity"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stderr.startswith("No CUDA device") and "Traceback" not in result.stderr
