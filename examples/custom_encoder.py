"""
A custom encoder for text: instructions of four words, and a task that depends on them.

    python examples/custom_encoder.py

Words are class numbers (MultiDiscrete). The encoder looks up a learned vector for each word. The default decoder predicts
the words. On a CPU.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import nn

from sb3_dreamer import DreamerV3, preset

WORDS = ["", "go", "do", "not", "left", "right", "now", "please"]
SENTENCES = [("go left now", 0), ("go right please", 1), ("do not go left", 1), ("do not go right", 0)]
LENGTH = 4


class InstructionEnv(gym.Env):
    """The reward of the only step is 1 for the action that the sentence asks for, otherwise -1."""

    def __init__(self) -> None:
        self.observation_space = spaces.MultiDiscrete([len(WORDS)] * LENGTH)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.sentence, self.answer = SENTENCES[self.np_random.integers(len(SENTENCES))]
        return self.words(), {}

    def words(self) -> np.ndarray:
        numbers = [WORDS.index(word) for word in self.sentence.split()]
        return np.array(numbers + [0] * (LENGTH - len(numbers)))

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.words(), 1.0 if action == self.answer else -1.0, True, False, {}


class TextEncoder(nn.Module):
    """
    :param observation_space: MultiDiscrete, a class number for each word
    :param width: of the vector of a word
    """

    def __init__(self, observation_space: spaces.MultiDiscrete, width: int = 16):
        super().__init__()
        self.features_dim = width * len(observation_space.nvec)
        self.table = nn.Embedding(int(observation_space.nvec.max()), width)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: (N, words)
        :return: (N, features_dim)
        """
        return self.table(obs.long()).flatten(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()
    settings = preset("small")
    settings["policy_kwargs"] = {**settings["policy_kwargs"], "encoder_class": TextEncoder, "encoder_kwargs": dict(width=16)}
    model = DreamerV3("MlpPolicy", make_vec_env(InstructionEnv, n_envs=4, seed=0), seed=0, verbose=1, **settings)
    model.learn(args.steps)
    mean, _ = evaluate_policy(model, make_vec_env(InstructionEnv, seed=1_000), n_eval_episodes=40)
    print(f"Mean reward: {mean:.2f} (1 is the best, 0 is chance)")


if __name__ == "__main__":
    main()
