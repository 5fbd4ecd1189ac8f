"""Learning curves of runs, next to published ones."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3, plots
from tests.support.helpers import TINY


def save_evaluations(folder, steps, means):
    folder.mkdir(parents=True)
    results = np.array(means)[:, None] + np.array([[-1.0, 1.0]])  # two episodes with this mean
    np.savez(folder / "evaluations.npz", timesteps=np.array(steps), results=results, ep_lengths=np.ones_like(results))


def test_mean_and_band_over_seeds(tmp_path, capsys):
    for seed, last in enumerate((10.0, 20.0, 60.0), start=1):
        save_evaluations(tmp_path / "dreamerv3" / f"CartPole-v1_{seed}", [100, 200], [0.0, last])
    save_evaluations(tmp_path / "dreamerv3" / "Pendulum-v1_1", [50], [-3.0])
    assert plots.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "CartPole-v1: 30 (10 to 60) after 200 steps, 3 seeds" in printed  # all three resamples may be one seed
    assert "Pendulum-v1: -3 (-3 to -3) after 50 steps, 1 seed\n" in printed
    for task in ("CartPole-v1", "Pendulum-v1"):
        assert Image.open(tmp_path / f"learning_curve_{task}.png").size[0] > 500


def test_seeds_with_different_points_are_interpolated():
    curves = [plots.Curve(np.array([0, 100]), np.array([0.0, 10.0]), "evaluations")]
    curves.append(plots.Curve(np.array([20, 60, 80]), np.array([2.0, 6.0, 8.0]), "evaluations"))
    steps, returns = plots.align(curves)
    assert (steps[0], steps[-1]) == (20, 80) and len(steps) == plots.N_BINS
    assert returns == pytest.approx(np.stack([steps, steps]) / 10)


def test_a_real_run(tmp_path):
    """Evaluations are preferred to training episodes; without them, these are averaged in bins."""
    for name, has_evaluations in (("A_1", True), ("B", False)):
        folder = tmp_path / name
        folder.mkdir()
        env = make_vec_env("sb3_dreamer/Counter-v0", 2, monitor_dir=str(folder))
        model = DreamerV3("MlpPolicy", env, seed=0, **TINY)
        eval_env = make_vec_env("sb3_dreamer/Counter-v0")
        evaluation = EvalCallback(eval_env, eval_freq=30, log_path=str(folder), n_eval_episodes=2, verbose=0)
        model.learn(200, callback=evaluation if has_evaluations else None)
    tasks = plots.find_runs([tmp_path])
    assert set(tasks) == {"A", "B"}
    (evaluated,), (trained,) = tasks["A"], tasks["B"]
    assert evaluated.kind == "evaluations" and evaluated.steps.tolist() == [60, 120, 180]
    assert trained.kind == "training episodes" and 5 < len(trained.steps) <= plots.N_BINS
    assert (np.diff(trained.steps) > 0).all() and np.isfinite(trained.returns).all()


@pytest.mark.parametrize(
    ("task", "suites"),
    [("dm_control-walker-walk-v0", {"dmc_proprio", "dmc_vision"}), ("ALE/Breakout-v5", {"atari100k"}), ("CartPole-v1", set())],
)
def test_published_curves(task, suites):
    axes = Figure().add_subplot()
    plots.draw(axes, task, [plots.Curve(np.array([0, 1000]), np.array([0.0, 1.0]), "evaluations")])
    labels = axes.get_legend_handles_labels()[1]
    assert {label.split(", ")[1] for label in labels if label.startswith("published")} == suites
    assert any(plots.SOURCE in text.get_text() for text in axes.texts) == bool(suites)


def test_points_are_the_published_ones():
    (point,) = [one for one in plots.read_published() if one["suite"] == "dmc_proprio" and one["task"] == "dmc_walker_walk"][
        :1
    ]
    axes = Figure().add_subplot()
    plots.draw(axes, "dm_control/walker-walk-v0", [plots.Curve(np.array([0, 1]), np.array([0.0, 1.0]), "evaluations")])
    drawn = [container for container in axes.containers if "dmc_proprio" in container.get_label()]
    x, y = drawn[0].lines[0].get_data()
    assert (x[0], y[0]) == (float(point["agent_steps"]), float(point["mean"]))


def test_a_folder_without_runs(tmp_path):
    command = [sys.executable, "-m", "sb3_dreamer.plots", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "must hold `evaluations.npz` or `*monitor.csv`" in done.stderr
    assert "Traceback" not in done.stderr
