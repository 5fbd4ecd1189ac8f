"""
See what a model imagines: frames with value, reward and action, and open-loop predictions beside the truth.

    python examples/dream_viewer.py
    python examples/dream_viewer.py --model logs/my_model.zip --env sb3_dreamer/PixelCatch16-v0

Without ``--model`` it trains a small one first. The GIF files are written to ``logs/dream_viewer/``. On a CPU.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3, audit_world_model, preset
from sb3_dreamer.callbacks import DreamCallback, WorldModelReportCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="sb3_dreamer/PixelCatch16-v0")
    parser.add_argument("--model", type=Path, help="a saved model of this environment")
    parser.add_argument("--steps", type=int, default=3_000, help="of training, or of collecting with the saved model")
    parser.add_argument("--folder", type=Path, default=Path("logs") / "dream_viewer")
    args = parser.parse_args()
    env = make_vec_env(args.env, n_envs=4, seed=0)
    if args.model is None:
        model = DreamerV3("MlpPolicy", env, seed=0, verbose=1, **preset("small"))
    else:
        model = DreamerV3.load(args.model, env=env)
        model.learning_rate = 0.0  # collect sequences to look at, and learn nothing
    model.learn(args.steps)
    WorldModelReportCallback(burn_in=2, horizon=6, folder=args.folder).report_on(model)
    DreamCallback(n_trajectories=4, horizon=7, burn_in=2, folder=args.folder).report_on(model)
    print(audit_world_model(model, n_sequences=32, burn_in=2, horizon=5))
    print(*sorted(path.name for path in args.folder.rglob("*") if path.is_file()), sep="\n")


if __name__ == "__main__":
    main()
