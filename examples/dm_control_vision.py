"""
dm_control from 64x64 images, with the published protocol (each action for two steps).

    pip install "shimmy[dm-control]" "mujoco<4"
    MUJOCO_GL=egl python examples/dm_control_vision.py --task walker-walk

``MUJOCO_GL`` is ``egl`` or ``osmesa`` on a machine without a screen. Meant for a GPU. Results are written to
``logs/dm_control/``.
"""

import argparse
import importlib
from pathlib import Path

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_dreamer import DreamerV3
from sb3_dreamer.callbacks import DreamerCheckpointCallback, WorldModelReportCallback
from sb3_dreamer.common.wrappers import ActionRepeat, dm_control_pixels


def make_env(task: str) -> gym.Env:
    """:return: images of a task; called in each process, where the ids must be known, too"""
    gym.register_envs(importlib.import_module("shimmy"))
    return ActionRepeat(dm_control_pixels(gym.make(f"dm_control/{task}-v0")), repeat=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="walker-walk")
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--model-size", default="12m")
    parser.add_argument("--training-ratio", type=float, default=512)
    parser.add_argument("--learning-starts", type=int, default=1_024, help="random actions before training")
    parser.add_argument("--log-dir", type=Path, default=Path("logs") / "dm_control")
    args = parser.parse_args()
    processes = SubprocVecEnv if args.n_envs > 1 else None
    settings = dict(env_kwargs=dict(task=args.task), vec_env_cls=processes, monitor_dir=str(args.log_dir))
    model = DreamerV3(
        "CnnPolicy",
        make_vec_env(make_env, n_envs=args.n_envs, seed=0, **settings),
        model_size=args.model_size,
        training_ratio=args.training_ratio,
        learning_starts=args.learning_starts,
        buffer_size=args.steps + 10_000,
        tensorboard_log=str(args.log_dir),
        seed=0,
        verbose=1,
    )
    report, checkpoint = WorldModelReportCallback(every=20_000), DreamerCheckpointCallback(
        20_000, args.log_dir / "checkpoints"
    )
    model.learn(args.steps, callback=[report, checkpoint])
    model.save(args.log_dir / "model")


if __name__ == "__main__":
    main()
