"""
Train on a small task, evaluate at fixed points, append one JSON line per evaluation.

    python benchmarks/learning.py cartpole --seed 0

Every run writes ``benchmarks/results/learning/TASK_seedN.jsonl`` anew: steps, updates, CPU and wall seconds, returns with
modes (``deterministic``) and with samples, mean losses since the last line.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV3

RESULTS = Path(__file__).parent / "results" / "learning"

# The small setting that the official code learns these tasks with: 217 thousand parameters on vectors.
SMALL: dict[str, Any] = dict(
    learning_rate=1e-3,
    lr_warmup_steps=100,
    learning_starts=0,
    batch_size=16,
    batch_length=16,
    training_ratio=128,
    gamma=0.99,
    imagine_last=4,
)
DIMENSIONS: dict[str, Any] = dict(deter=128, hidden=64, stoch=8, classes=8, units=64, blocks=4)

TASKS: dict[str, dict[str, Any]] = {
    "cartpole": dict(env="CartPole-v1", steps=4000, every=250, episodes=20, model=dict(ent_coef=1e-2), dimensions={}),
    "pendulum": dict(env="Pendulum-v1", steps=6000, every=500, episodes=20, model=dict(imagine_last=8), dimensions={}),
    "pixelcatch": dict(
        env="sb3_dreamer/PixelCatch-v0",
        env_kwargs=dict(image_size=16),
        policy="CnnPolicy",
        steps=6000,
        every=500,
        episodes=100,
        model=dict(ent_coef=3e-2),
        dimensions=dict(depth=4, cnn_multipliers=(2, 4)),
    ),
    "frozenlake": dict(
        env="sb3_dreamer/FrozenLake4x4-v0",
        steps=6000,
        every=500,
        episodes=20,
        model=dict(ent_coef=1e-2),
        dimensions={},
    ),
    "tmaze": dict(
        env="sb3_dreamer/TMaze-v0",
        env_kwargs=dict(length=2),
        steps=2400,
        every=300,
        episodes=100,
        model=dict(ent_coef=3e-3, learning_rate=3e-3, training_ratio=256),
        dimensions=dict(stoch=4, classes=4),
    ),
}


class Evaluation(BaseCallback):
    """Evaluates every so many steps without disturbing the training's random numbers."""

    def __init__(self, env: Any, every: int, n_episodes: int, path: Path):
        super().__init__()
        self.env, self.every, self.n_episodes, self.path = env, every, n_episodes, path
        self.next = every
        self.eval_cpu, self.eval_wall = 0.0, 0.0
        self.start_cpu, self.start_wall = time.process_time(), time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.next:
            self.next += self.every
            self._evaluate()
        return True

    def _evaluate(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        generator_state = th.get_rng_state()
        returns = {}
        for name, deterministic in (("deterministic", True), ("sampled", False)):
            self.env.seed(10_000)
            episode_returns, _ = evaluate_policy(
                self.model, self.env, self.n_episodes, deterministic=deterministic, return_episode_rewards=True
            )
            returns[name] = round(float(np.mean(episode_returns)), 3)
        th.set_rng_state(generator_state)
        self.eval_cpu += time.process_time() - cpu
        self.eval_wall += time.perf_counter() - wall
        line = dict(
            steps=self.num_timesteps,
            updates=self.model._n_updates,
            **returns,
            train_cpu_s=round(time.process_time() - self.start_cpu - self.eval_cpu, 1),
            train_wall_s=round(time.perf_counter() - self.start_wall - self.eval_wall, 1),
            eval_cpu_s=round(self.eval_cpu, 1),
            metrics={name: round(value, 4) for name, value in self.model._metrics.flush().items()},
        )
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(self.path.stem, {key: value for key, value in line.items() if key != "metrics"}, flush=True)


def make_model(task: dict[str, Any], seed: int) -> DreamerV3:
    """:return: the task's small model on four environments"""
    env = make_vec_env(task["env"], n_envs=4, seed=seed, env_kwargs=task.get("env_kwargs", {}))
    return DreamerV3(
        task.get("policy", "MlpPolicy"),
        env,
        **{**SMALL, **task["model"]},
        policy_kwargs={**DIMENSIONS, **task["dimensions"]},
        seed=seed,
        device="cpu",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="environment steps, default: the task's")
    args = parser.parse_args()
    th.set_num_threads(1)
    task = TASKS[args.task]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{args.task}_seed{args.seed}.jsonl"
    path.unlink(missing_ok=True)

    eval_env = make_vec_env(task["env"], n_envs=10, seed=10_000, env_kwargs=task.get("env_kwargs", {}))
    model = make_model(task, args.seed)
    evaluation = Evaluation(eval_env, task["every"], task["episodes"], path)
    model.learn(args.steps or task["steps"], callback=evaluation, log_interval=None)


if __name__ == "__main__":
    main()
