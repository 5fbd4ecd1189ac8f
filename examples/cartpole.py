"""
Solve CartPole-v1 with a small DreamerV3, in Python: train, keep the best model, evaluate it.

    python examples/cartpole.py
    python examples/plot_run.py logs/cartpole

Exits with an error if the best model scores below 450 of 500. The best model and the logs are written to ``logs/cartpole/``.
"""

import argparse
import sys
import time
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV3, preset

BAR = 450.0
N_ENVS = 4


def make_model(log_dir: Path, seed: int) -> DreamerV3:
    """A model with the setting for small tasks, which docs/tuning.md explains."""
    return DreamerV3(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=N_ENVS, seed=seed, monitor_dir=str(log_dir)),
        tensorboard_log=str(log_dir),
        seed=seed,
        device="cpu",
        verbose=1,
        **preset("small"),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps at most; training stops when solved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-dir", type=Path, default=Path("logs") / "cartpole")
    args = parser.parse_args()
    th.set_num_threads(1)  # matrices this small are not faster with a second thread
    args.log_dir.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    model = make_model(args.log_dir, args.seed)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", n_envs=10, seed=args.seed + 1000),
        eval_freq=250 // N_ENVS,
        n_eval_episodes=20,
        log_path=str(args.log_dir),
        best_model_save_path=str(args.log_dir),
        callback_on_new_best=StopTrainingOnRewardThreshold(490.0, verbose=1),
    )
    model.learn(args.steps, callback=evaluation, log_interval=10)

    best = DreamerV3.load(args.log_dir / "best_model", device="cpu")
    env = make_vec_env("CartPole-v1", n_envs=10, seed=args.seed + 2000)
    greedy, _ = evaluate_policy(best, env, n_eval_episodes=20, deterministic=True)
    sampled, _ = evaluate_policy(best, env, n_eval_episodes=20, deterministic=False)
    seconds = time.perf_counter() - start
    print(f"Training and evaluation: {seconds:.0f} s, {model.num_timesteps} steps, {model._n_updates} updates")
    print(f"Best model: greedy return {greedy:.1f}, sampled return {sampled:.1f} (of 500; 20 new episodes each)")
    print(f"TensorBoard: tensorboard --logdir {args.log_dir}")
    if greedy < BAR:  # EvalCallback selects the best model by its greedy return
        print(f"Not solved: the greedy return is below {BAR:.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
