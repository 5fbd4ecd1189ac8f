"""Small models and batches shared by the tests."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.envs import CounterEnv
from sb3_dreamer.common.type_aliases import SequenceBatch, SequenceIndices
from sb3_dreamer.dreamerv3.fast.make_update import make_loss as make_objective
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

# As small as possible: an update takes about ten milliseconds.
TINY: dict[str, Any] = dict(
    model_size="debug",
    batch_size=4,
    batch_length=8,
    imagination_horizon=3,
    learning_starts=24,
    training_ratio=2,
    buffer_size=3000,
    device="cpu",
)

IMAGE = spaces.Box(0, 255, (3, 16, 16), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
MIXED = spaces.Dict(
    {
        "camera": IMAGE,
        "flags": spaces.MultiBinary(3),
        "kind": spaces.Discrete(4),
        "position": VECTOR,
        "sizes": spaces.MultiDiscrete([2, 5]),
        "small.camera": spaces.Box(0, 255, (1, 20, 24), np.uint8),
    }
)
ACTION_SPACES = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32)),
}

COUNTERS = ((7, False, 0), (11, True, 100), (13, False, 200))


def counter_envs(offset: int = 0) -> DummyVecEnv:
    """Three counter environments with episodes of 7, 11 (truncated) and 13 steps and disjoint episode numbers."""

    def make(length, truncates, first):
        return lambda: CounterEnv(length, truncates, first_episode=first + offset)

    return DummyVecEnv([make(*counter) for counter in COUNTERS])


def counter_model(**kwargs: Any) -> DreamerV3:
    return DreamerV3("MlpPolicy", counter_envs(), seed=0, **{**TINY, **kwargs})


def make_policy(observation_space, action_space, **kwargs: Any) -> DreamerPolicy:
    th.manual_seed(0)
    return DreamerPolicy(observation_space, action_space, lambda _: 1e-3, **{"model_size": "debug", **kwargs})


def make_loss(policy: DreamerPolicy, **kwargs: Any) -> DreamerLoss:
    settings = dict(imagination_horizon=3, gamma=0.99, return_lambda=0.95, ent_coef=3e-4, free_nats=1.0)
    return make_objective(policy, **{**settings, **kwargs})


def randomize_outputs(policy: DreamerPolicy) -> None:
    """Fill the layers that start at zero, so that gradients pass through them."""
    for head in (policy.world_model.reward_head, policy.critic, policy.critic_target):
        th.nn.init.normal_(head.output.weight, std=0.1)


def random_observations(space: spaces.Space, lead: tuple[int, ...], rng: np.random.Generator):
    """Observations as the replay buffer returns them, (*lead, ...)."""
    if isinstance(space, spaces.Dict):
        return {key: random_observations(sub, lead, rng) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return th.as_tensor(rng.integers(0, space.n, (*lead, 1)))
    if isinstance(space, spaces.MultiDiscrete):
        return th.as_tensor(rng.integers(0, space.nvec, (*lead, *space.shape)))
    if isinstance(space, spaces.MultiBinary):
        return th.as_tensor(rng.integers(0, 2, (*lead, *space.shape)), dtype=th.int8)
    if space.dtype == np.uint8:
        return th.as_tensor(rng.integers(0, 256, (*lead, *space.shape)), dtype=th.uint8)
    return th.as_tensor(rng.normal(0.0, 2.0, (*lead, *space.shape)), dtype=th.float32)


def random_batch(policy: DreamerPolicy, batch_size: int = 4, length: int = 8, seed: int = 0) -> SequenceBatch:
    """A batch of random data and random flags."""
    rng = np.random.default_rng(seed)
    lead = (batch_size, length)
    is_first = rng.random(lead) < 0.15
    is_last = np.concatenate([is_first[:, 1:], rng.random((batch_size, 1)) < 0.5], axis=1)
    is_terminal = is_last & (rng.random(lead) < 0.5)
    action_space = policy.action_space
    if isinstance(action_space, spaces.Box):
        actions = th.as_tensor(rng.uniform(-1, 1, (*lead, *action_space.shape)), dtype=th.float32)
    else:
        actions = random_observations(action_space, lead, rng)
    return SequenceBatch(
        observations=random_observations(policy.observation_space, lead, rng),
        prev_actions=actions,
        rewards=th.as_tensor(rng.integers(-1, 2, lead), dtype=th.float32),
        is_first=th.as_tensor(is_first),
        is_last=th.as_tensor(is_last),
        is_terminal=th.as_tensor(is_terminal),
        initial=policy.world_model.rssm.initial(batch_size),
        indices=SequenceIndices(np.zeros(lead, np.int64), np.zeros(batch_size, np.int64)),
    )


def double(value):
    """Cast all floats of a nested structure to float64."""
    if isinstance(value, th.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: double(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(double(part) for part in value))
    return value
