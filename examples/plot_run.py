"""
Plot the training episodes (Monitor) and evaluations (EvalCallback) of a run of RL Zoo or ``examples/cartpole.py``.

    python examples/plot_run.py logs/demo --bar 450

Takes the newest run in the folder or its subfolders, prints its evaluations, writes ``learning_curve.png`` next to them, and
shows it if there is a display. With ``--bar`` it exits with an error if the best evaluation is below that return.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import ts2xy

HAS_DISPLAY = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32"))


def newest_run(folder: Path) -> Path:
    """:return: folder of the newest ``evaluations.npz`` in ``folder`` or its subfolders"""
    found = sorted(folder.rglob("evaluations.npz"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"No `evaluations.npz` in {folder}: train with evaluations first")
    return found[-1].parent


def plot(run: Path, steps: np.ndarray, means: np.ndarray, bar: float | None) -> Path:
    """:return: path of the figure"""
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(*ts2xy(load_results(str(run)), "timesteps"), ".", markersize=3, alpha=0.5, label="training episodes")
    axes.plot(steps, means, "o-", label="evaluations")
    if bar is not None:
        axes.axhline(bar, color="grey", linestyle="--", linewidth=1, label=f"bar: {bar:g}")
    axes.set(title=run.name, xlabel="environment steps", ylabel="episode return")
    axes.legend(loc="upper left")
    figure.tight_layout()
    path = run / "learning_curve.png"
    figure.savefig(path, dpi=120)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bar", type=float, help="return that the best evaluation must reach")
    args = parser.parse_args()
    run = newest_run(args.folder)
    evaluations = np.load(run / "evaluations.npz")
    steps, means = evaluations["timesteps"], evaluations["results"].mean(axis=1)
    widest = max(1.0, np.abs(means).max())
    for step, mean in zip(steps, means, strict=True):
        print(f"{step:>8} {mean:>9.1f} {'#' * round(50 * max(mean, 0.0) / widest)}")
    print(f"Best evaluation: {means.max():.1f}. Learning curve: {plot(run, steps, means, args.bar)}")
    if HAS_DISPLAY:
        plt.show()
    if args.bar is not None and means.max() < args.bar:
        print(f"The best evaluation is below {args.bar:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
