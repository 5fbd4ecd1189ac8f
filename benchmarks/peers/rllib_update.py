"""RLlib's training update (``learner.update``) of DreamerV3 XXS, for ``compare.py``."""

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.dreamerv3 import DreamerV3Config

from benchmarks.peers.turns import take_turns

B, T = 16, 64


class Still(gym.Env):
    """Placeholder environment: vector observation of 24 numbers, 6-dimensional Box action."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (24,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(24, np.float32), {}

    def step(self, action):
        return np.zeros(24, np.float32), 0.0, False, False, {}


torch.set_num_threads(1)
config = DreamerV3Config().environment(Still).learners(num_learners=0).env_runners(num_env_runners=0)
config = config.training(model_size="XXS", training_ratio=1024, batch_size_B=B, batch_length_T=T)
learner = config.build_learner(env=Still())
learner.build()
rng = np.random.default_rng(0)
is_first, is_last = np.zeros((B, T), bool), np.zeros((B, T), bool)
is_first[:, 0] = is_first[::4, 32] = is_last[::4, 31] = True
batch = {
    "obs": rng.normal(size=(B, T, 24)).astype(np.float32),
    "actions": rng.uniform(-1, 1, (B, T, 6)).astype(np.float32),
    "rewards": rng.normal(size=(B, T)).astype(np.float32),
    "is_first": is_first,
    "is_last": is_last,
    "is_terminated": is_last,
}
steps = iter(range(0, 10**9, 1024))


def update():
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    sample = SampleBatch({name: torch.as_tensor(value) for name, value in batch.items()})
    timesteps = {"num_env_steps_sampled_lifetime": next(steps)}
    return learner.update(batch=MultiAgentBatch({"default_policy": sample}, env_steps=B * T), timesteps=timesteps)


parameters = sum(p.numel() for p in learner.module["default_policy"].parameters() if p.requires_grad)
take_turns(update, version=ray.__version__, parameters=parameters)
