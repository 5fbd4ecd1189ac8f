"""
An environment of your own with a Dict of observations: a camera, numbers and a mode.

    python examples/custom_env.py

A point must reach a goal. The camera shows the point, the goal is given as numbers, and the mode says whether the directions
are swapped. On a CPU.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer import DreamerV3, preset

SIZE = 32


class ReachEnv(gym.Env):
    """The reward is minus the distance to the goal. Episodes are truncated after 20 steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            camera=spaces.Box(0.0, 1.0, (SIZE, SIZE, 3), np.float32),  # floats in [0, 1] are an image, too
            goal=spaces.Box(-np.inf, np.inf, (2,), np.float32),
            mode=spaces.Discrete(2),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.point, self.goal = self.np_random.uniform(0.1, 0.9, (2, 2))
        self.mode, self.steps = int(self.np_random.integers(2)), 0
        return self.observation(), {}

    def observation(self) -> dict[str, Any]:
        camera = np.zeros((SIZE, SIZE, 3), np.float32)
        row, column = (self.point * (SIZE - 4)).astype(int)
        camera[row : row + 4, column : column + 4, 0] = 1.0
        return {"camera": camera, "goal": self.goal.astype(np.float32), "mode": self.mode}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        move = action[::-1] if self.mode else action
        self.point = np.clip(self.point + 0.15 * move, 0.0, 1.0)
        self.steps += 1
        return self.observation(), -float(np.linalg.norm(self.point - self.goal)), False, self.steps == 20, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    check_env(ReachEnv(), warn=False)
    # DreamerV3 needs no VecNormalize. With it, leave the images out.
    env = VecNormalize(make_vec_env(ReachEnv, n_envs=4, seed=0), norm_obs_keys=["goal"], norm_reward=False)
    model = DreamerV3("MultiInputPolicy", env, seed=0, verbose=1, **preset("small"))
    print(model.policy.image_keys, "are read as images")
    model.learn(args.steps)
    print(evaluate_policy(model, env, n_eval_episodes=8))


if __name__ == "__main__":
    main()
