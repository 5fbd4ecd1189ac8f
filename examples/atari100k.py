"""
Atari100k: 100 thousand actions of one game, with the published protocol: 64x64 colour, 4 frames per action, no
sticky actions.

    pip install ale-py opencv-python
    python examples/atari100k.py --game Breakout

Meant for a GPU: with a model of 12 million parameters and ratio 256, the run makes 27,500 updates. Results are written to
``logs/atari100k/``.
"""

import argparse
import importlib
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback, WorldModelReportCallback
from sb3_dreamer.common.wrappers import atari


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--steps", type=int, default=110_000)
    parser.add_argument("--model-size", default="12m")
    parser.add_argument("--training-ratio", type=float, default=256)
    parser.add_argument("--learning-starts", type=int, default=1_024, help="random actions before training")
    parser.add_argument("--log-dir", type=Path, default=Path("logs") / "atari100k")
    args = parser.parse_args()
    gym.register_envs(importlib.import_module("ale_py"))  # makes the ids known

    def make_envs(seed: int, monitor_dir: str | None = None):
        return make_vec_env(f"ALE/{args.game}-v5", seed=seed, wrapper_class=atari, monitor_dir=monitor_dir)

    model = DreamerV3(
        "CnnPolicy",
        make_envs(0, str(args.log_dir)),
        model_size=args.model_size,
        training_ratio=args.training_ratio,
        learning_starts=args.learning_starts,
        buffer_size=args.steps + 1_000,
        tensorboard_log=str(args.log_dir),
        seed=0,
        verbose=1,
    )
    callbacks = [
        EvalCallback(make_envs(1_000), eval_freq=10_000, n_eval_episodes=10, log_path=str(args.log_dir)),
        DreamerCheckpointCallback(save_freq=10_000, path=args.log_dir / "checkpoints"),
        WorldModelReportCallback(every=10_000),
    ]
    model.learn(args.steps, callback=callbacks)
    model.save(args.log_dir / "model")


if __name__ == "__main__":
    main()
