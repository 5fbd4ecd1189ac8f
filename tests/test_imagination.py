"""Imagined trajectories: the actor in the world model, step by step."""

import pytest
import torch as th
from gymnasium import spaces
from torch.nn.functional import one_hot

from sb3_dreamer.common.type_aliases import ImaginationNoise, LatentState
from sb3_dreamer.dreamerv3.imagination import imagine
from tests.support.helpers import ACTION_SPACES, VECTOR, make_policy

N, H = 6, 4


def start_and_noise(policy, horizon=H):
    """:return: start states, and noise for an imagined trajectory from each"""
    th.manual_seed(1)
    stoch = one_hot(th.randint(4, (N, 2)), 4).float()
    noise = ImaginationNoise(th.rand(N, horizon, 2), policy.actor.draw_noise(N, horizon + 1))
    return LatentState(th.randn(N, policy.size.deter).tanh(), stoch), noise


def encoded(action: th.Tensor, space: spaces.Space) -> th.Tensor:
    """Encode actions (N, action_dim) for the model."""
    if isinstance(space, spaces.Box):
        return action
    sizes = {"Discrete": [3], "MultiDiscrete": [2, 4, 3], "MultiBinary": [2, 2, 2]}[type(space).__name__]
    return th.cat([one_hot(action[:, i].long(), size) for i, size in enumerate(sizes)], -1).float()


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_imagination_follows_the_model_step_by_step(name):
    space = ACTION_SPACES[name]
    policy = make_policy(VECTOR, space)
    th.nn.init.normal_(policy.actor.output.weight)
    start, noise = start_and_noise(policy)
    trajectory = imagine(policy.world_model, policy.actor, start, noise)
    assert trajectory.features.shape == (N, H + 1, policy.size.features_dim)
    assert trajectory.actions.shape == (N, H + 1, policy.actor.noise_dim)
    rssm, state = policy.world_model.rssm, start
    with th.no_grad():
        for k in range(H + 1):
            th.testing.assert_close(trajectory.latents.deter[:, k], state.deter)
            assert th.equal(trajectory.latents.stoch[:, k], state.stoch)  # one-hot: exactly 0 or 1
            assert th.equal(trajectory.features[:, k], th.cat([trajectory.latents.deter[:, k], state.stoch.flatten(1)], -1))
            action = policy.actor(trajectory.features[:, k]).sample(noise.actions[:, k])
            th.testing.assert_close(trajectory.actions[:, k], action)
            if k < H:
                deter = rssm.core(state.deter, state.stoch, encoded(action, space))
                state = LatentState(deter, one_hot(rssm.prior(deter).sample(noise.stoch[:, k]), 4).float())
    assert len(trajectory.latents.stoch.argmax(-1).flatten(1).unique(dim=0)) > 1  # the trajectories differ


def test_imagined_trajectories_have_no_gradient():
    policy = make_policy(VECTOR, ACTION_SPACES["box"])
    start, noise = start_and_noise(policy)
    deter = start.deter.requires_grad_()
    trajectory = imagine(policy.world_model, policy.actor, LatentState(deter, start.stoch), noise)
    assert not any(part.requires_grad for part in (trajectory.features, trajectory.actions, *trajectory.latents))


def test_a_longer_trajectory_starts_like_a_shorter_one():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    start, noise = start_and_noise(policy, horizon=7)
    long = imagine(policy.world_model, policy.actor, start, noise)
    for horizon in (1, 4):
        part = ImaginationNoise(noise.stoch[:, :horizon], noise.actions[:, : horizon + 1])
        short = imagine(policy.world_model, policy.actor, start, part)
        assert short.features.shape[1] == horizon + 1
        assert th.equal(short.features, long.features[:, : horizon + 1])
        assert th.equal(short.actions, long.actions[:, : horizon + 1])
