"""
FlappyBird from images: frames of 512x288 pixels, made small by wrappers.

    pip install flappy-bird-gymnasium
    python examples/flappy_bird.py

Shows how to turn an environment that returns numbers into one that returns images. Meant for a GPU. Results are written to
``logs/flappy_bird/``.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # before pygame is imported: it needs no screen
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import flappy_bird_gymnasium  # noqa: F401  (makes the id known)
import gymnasium as gym
from gymnasium.wrappers import AddRenderObservation, ResizeObservation
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback


def make_env() -> gym.Env:
    """:return: FlappyBird with images (64, 64, 3); ``sb3_dreamer.common.wrappers.flappy_bird_frames`` does the same"""
    env = gym.make("FlappyBird-v0", render_mode="rgb_array", use_lidar=False)
    return ResizeObservation(AddRenderObservation(env), (64, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--model-size", default="M")
    parser.add_argument("--training-ratio", type=float, default=64)
    parser.add_argument("--learning-starts", type=int, default=1_024, help="random actions before training")
    parser.add_argument("--log-dir", type=Path, default=Path("logs") / "flappy_bird")
    args = parser.parse_args()
    model = DreamerV3(
        "CnnPolicy",
        make_vec_env(make_env, n_envs=args.n_envs, seed=0, monitor_dir=str(args.log_dir)),
        model_size=args.model_size,
        training_ratio=args.training_ratio,
        learning_starts=args.learning_starts,
        buffer_size=200_000,
        tensorboard_log=str(args.log_dir),
        seed=0,
        verbose=1,
    )
    model.learn(args.steps, callback=DreamerCheckpointCallback(50_000, args.log_dir / "checkpoints"))
    model.save(args.log_dir / "model")


if __name__ == "__main__":
    main()
