"""
Compare three ways to act deterministically: train, and evaluate the same weights in each way at fixed points.

    python -m benchmarks.learning.deterministic cartpole --seeds 0 1 2 --steps 4000
    python -m benchmarks.learning.deterministic --report

- ``sampled``: latent and action are sampled, as in training;
- ``posterior_mode``: the most likely latent and the most likely action;
- ``counter_noise``: the latent is sampled with noise that depends only on the step within the episode, and the action is the
  most likely one.

The last two draw no global random numbers. Each task and seed has one file under ``benchmarks/results/deterministic``. If the
file exists, the run is skipped. A run needs a clean commit, which is stored in the file; with ``--allow-dirty`` the commit is
marked with a ``+``.
"""

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.learning.harness import RefusedRun, Run, build, check_sources
from benchmarks.learning.presets import ROOT
from benchmarks.learning.tasks import TASKS
from sb3_dreamer.common.preprocessing import decode_actions
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

RESULTS = ROOT / "benchmarks" / "results" / "deterministic"
WAYS = ("sampled", "posterior_mode", "counter_noise")
N_EPISODES = 100


class CounterNoiseAgent:
    """Act with the mode of the actor and latent noise that depends on the step. The step is part of the state."""

    def __init__(self, policy: DreamerPolicy, longest_episode: int = 1001):
        self.policy = policy
        generator = th.Generator().manual_seed(0)
        self.noise = th.rand(longest_episode, policy.size.stoch, generator=generator)  # (steps, S)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, **_: Any) -> Any:
        tensors, _ = self.policy.obs_to_tensor(observation)
        steps = np.zeros(len(observation), dtype=int) if state is None else np.where(episode_start, 0, state[-1] + 1)
        latent = None if state is None else PolicyState(*state[:-1])
        starts = None if state is None else th.as_tensor(np.array(episode_start))
        actions, latent = self.policy.step(tensors, latent, starts, deterministic=True, noise=self.noise[steps])
        return decode_actions(actions.numpy(), self.policy.action_space), (*latent, steps)


class CompareWays(BaseCallback):
    """Evaluate the current weights in all ways on the same environments, without affecting training."""

    def __init__(self, env: Any, every: int):
        super().__init__()
        self.env, self.every, self.lines = env, every, []

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.every * (len(self.lines) + 1):
            generator_state = th.get_rng_state()
            line = dict(steps=self.num_timesteps, updates=self.model._n_updates)
            for way in WAYS:
                agent = CounterNoiseAgent(self.model.policy) if way == "counter_noise" else self.model
                self.model.policy.set_training_mode(False)
                self.env.seed(10_000)
                returns, _ = evaluate_policy(
                    agent, self.env, N_EPISODES, deterministic=way != "sampled", return_episode_rewards=True
                )
                line |= {way: round(float(np.mean(returns)), 3), f"{way}_std": round(float(np.std(returns)), 3)}
            th.set_rng_state(generator_state)
            self.lines.append(line)
            print(line, flush=True)
        return True


def run(name: str, seed: int, steps: int, allow_dirty: bool = False) -> None:
    """
    Train once and write the evaluations.

    :param name: name of the task
    :param seed: seed of the run
    :param steps: environment steps
    :param allow_dirty: accept sources that differ from the last commit
    :raises RefusedRun: if the sources differ and ``allow_dirty`` is False
    """
    path = RESULTS / f"{name}_seed{seed}.json"
    if path.exists():
        return
    revision = check_sources(allow_dirty)
    model, eval_env, _ = build(Run(name, "dreamerv3", seed, steps, "", {}, RESULTS))
    comparison = CompareWays(eval_env, steps // 8)
    model.learn(steps, callback=comparison, log_interval=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = dict(task=name, seed=seed, episodes=N_EPISODES, commit=revision, evaluations=comparison.lines)
    path.write_text(json.dumps(facts, indent=1) + "\n")


def report() -> None:
    """Print a Markdown table of all files: means over the evaluations, and how often the mode was better or worse."""
    print("| task | seed | " + " | ".join(WAYS) + " | mode better / worse / equal |")
    print("|---|---|" + "---|" * (len(WAYS) + 1))
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text())
        lines = data["evaluations"][2:]  # the first two are from the beginning of training
        means = [f"{np.mean([line[way] for line in lines]):.2f}" for way in WAYS]
        differences = np.sign([line["posterior_mode"] - line["counter_noise"] for line in lines])
        counts = " / ".join(str(int((differences == sign).sum())) for sign in (1, -1, 0))
        print(f"| {data['task']} | {data['seed']} | " + " | ".join(means) + f" | {counts} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps, default: the task's")
    parser.add_argument("--allow-dirty", action="store_true", help="run sources that differ from the last commit")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    th.set_num_threads(1)
    try:
        for seed in args.seeds:
            for name in args.tasks:
                run(name, seed, args.steps or TASKS[name].steps, args.allow_dirty)
    except RefusedRun as error:
        sys.exit(str(error))
    if args.report:
        report()


if __name__ == "__main__":
    main()
