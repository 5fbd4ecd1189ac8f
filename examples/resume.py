"""
A run that may be stopped at any time, and goes on where it was.

    python examples/resume.py   # Ctrl-C ends it with a checkpoint
    python examples/resume.py   # the same command goes on

The checkpoint has everything: weights, optimizer, replay buffer, counters and random states. On a CPU.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3, preset
from sb3_dreamer.callbacks import DreamerCheckpointCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of the whole run")
    parser.add_argument("--save-freq", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, default=Path("logs") / "resume")
    args = parser.parse_args()
    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    if any(args.folder.glob("checkpoint_*")):
        model = DreamerV3.resume(args.folder, env)
        print(f"Going on from step {model.num_timesteps}")
    else:
        model = DreamerV3("MlpPolicy", env, seed=0, verbose=1, **preset("small"))
    callback = DreamerCheckpointCallback(save_freq=args.save_freq, path=args.folder, verbose=1)
    left = args.steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=callback, reset_num_timesteps=False)
    print(f"{model.num_timesteps} steps, {model._n_updates} updates")


if __name__ == "__main__":
    main()
