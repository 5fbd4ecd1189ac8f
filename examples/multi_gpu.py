"""
Train on one GPU, several GPUs, several machines or a CPU. The launcher (torchrun) selects which.

    python examples/multi_gpu.py
    torchrun --nproc-per-node=4 examples/multi_gpu.py --model-size 12m
    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 examples/multi_gpu.py

Each rank has its own environments, replay buffer and batch. Gradients, return percentiles and metrics are averaged over ranks.
Steps are counted over all ranks. The main rank logs, evaluates and saves to ``logs/multi_gpu/``. See ``docs/scaling.md``.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="sb3_dreamer/PixelCatch-v0")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps of all ranks together")
    parser.add_argument("--model-size", default="auto")
    parser.add_argument("--training-ratio", type=float, default=128, help="replayed time steps per environment step")
    parser.add_argument("--learning-rate", type=float, default=4e-5, help="for one rank, see --scaling")
    parser.add_argument("--scaling", default="sqrt", choices=["sqrt", "linear", "sqrt+priming", "linear+priming", "none"])
    parser.add_argument("--batch-size", type=int, default=16, help="windows per rank and update")
    parser.add_argument("--buffer-size", type=int, default=100_000, help="rows per rank")
    parser.add_argument("--n-envs", type=int, default=4, help="environments per rank")
    parser.add_argument("--eval-freq", type=int, default=1_000, help="calls of env.step between evaluations")
    parser.add_argument("--log-dir", type=Path, default=Path("logs") / "multi_gpu")
    args = parser.parse_args()
    model = DreamerV3(
        "CnnPolicy",
        make_vec_env(args.env, n_envs=args.n_envs, monitor_dir=str(args.log_dir)),
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        buffer_size=args.buffer_size,
        training_ratio=args.training_ratio,
        model_size=args.model_size,
        distributed_scaling=None if args.scaling == "none" else args.scaling,
        tensorboard_log=str(args.log_dir),
        seed=0,
        verbose=1,
    )
    # Callbacks run on the main rank. Set `all_ranks = True` on a callback to run it on every rank.
    evaluation = EvalCallback(
        make_vec_env(args.env, n_envs=4),
        eval_freq=args.eval_freq,
        log_path=str(args.log_dir),
        best_model_save_path=str(args.log_dir),
    )
    checkpoints = CheckpointCallback(args.eval_freq, str(args.log_dir), save_replay_buffer=True)  # every rank saves its buffer
    model.learn(args.steps, callback=[evaluation, checkpoints], progress_bar=True)
    model.save(args.log_dir / "model")


if __name__ == "__main__":
    main()
