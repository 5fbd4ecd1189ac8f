"""Each example runs for a few steps."""

import importlib
import sys

import pytest
import torch as th

from sb3_dreamer import DreamerV3

TINY = ["--model-size", "debug", "--training-ratio", "64", "--learning-starts", "0"]
EXAMPLES = {
    "cartpole": ([], 260, None),
    "custom_env": ([], 200, None),
    "custom_encoder": ([], 200, None),
    "resume": (["--save-freq", "40"], 80, None),
    "dream_viewer": ([], 200, None),
    "atari100k": (TINY, 120, "ale_py"),
    "flappy_bird": ([*TINY, "--n-envs", "1"], 120, "flappy_bird_gymnasium"),
    "dm_control_vision": ([*TINY, "--n-envs", "1"], 120, "dm_control"),
}


def run(name, monkeypatch, arguments, steps):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", str(steps), *arguments])
    return importlib.import_module(f"examples.{name}").main()


@pytest.mark.filterwarnings("ignore::UserWarning")  # because of the few steps
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, monkeypatch, tmp_path, capsys):
    arguments, steps, package = EXAMPLES[name]
    if package is not None:
        pytest.importorskip(package)
    if name == "dm_control_vision":
        monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.chdir(tmp_path)
    threads, models = th.get_num_threads(), []
    right = DreamerV3.learn
    monkeypatch.setattr(DreamerV3, "learn", lambda self, *args, **kw: models.append(self) or right(self, *args, **kw))
    run(name, monkeypatch, arguments, steps)
    th.set_num_threads(threads)  # CartPole's sets one
    assert models[0].num_timesteps >= steps and models[0]._n_updates > 0
    files = {path.name for path in tmp_path.rglob("*")}
    if name == "dream_viewer":
        assert any(file.endswith(".gif") for file in files)
    if name in ("atari100k", "flappy_bird", "dm_control_vision"):
        assert "model.zip" in files
    if name == "resume":
        run(name, monkeypatch, arguments, 160)
        assert "Going on from step 80" in capsys.readouterr().out
        assert models[1].num_timesteps == 160
