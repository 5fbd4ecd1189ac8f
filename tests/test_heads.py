"""Heads: initial predictions, shapes, and the action distributions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.dreamerv3.heads import ActorHead, ContinueHead, TwoHotHead
from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES
from tests.support.helpers import ACTION_SPACES, counter_model

SIZE = MODEL_SIZES["debug"]
BOX = ACTION_SPACES["box"]
UNEQUAL = [2, 4, 3]
FIRST_STD = 0.1 + 0.9 / (1 + math.exp(-2.0))


def features(*lead: int) -> th.Tensor:
    return th.randn(*lead, SIZE.features_dim, generator=th.Generator().manual_seed(0))


@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_a_two_hot_head_predicts_exactly_zero_at_initialisation(lead):
    head = TwoHotHead(SIZE, n_layers=2)
    prediction = head(features(*lead))
    assert len(head.mlp) == 2 and prediction.mean().shape == lead
    assert not prediction.mean().any()
    targets = th.linspace(-100.0, 100.0, math.prod(lead)).reshape(lead)
    th.testing.assert_close(prediction.loss(targets), th.full(lead, math.log(SIZE.bins)))  # uniform, whatever the target
    th.nn.init.normal_(head.output.weight, std=0.1)
    assert len(head(features(*lead)).mean().unique()) == math.prod(lead)
    assert "bins" not in head.state_dict()


def test_the_continue_head_is_the_sigmoid_of_one_number():
    head = ContinueHead(SIZE)
    x = features(2, 3)
    logit = (head.mlp(x) * head.output.weight[0]).sum(-1) + head.output.bias
    th.testing.assert_close(head(x).mean(), 1 / (1 + (-logit).exp()))
    assert head(x).mean().shape == (2, 3)


def test_a_box_actor_starts_at_zero_and_stays_in_bounds():
    th.manual_seed(0)
    actor = ActorHead(BOX, SIZE)
    x = features(500)
    first = actor(x)
    assert first.mean.shape == first.std.shape == (500, 2)
    assert 0 < first.mean.abs().max() < 0.05 and (first.std - FIRST_STD).abs().max() < 0.01
    for layer in (actor.output, actor.output_std):
        th.nn.init.zeros_(layer.weight)
    assert not actor(x).mean.any()
    th.testing.assert_close(actor(x).std, th.full((500, 2), FIRST_STD))
    with th.no_grad():
        actor.output.bias.copy_(th.tensor([1e3, -1e3]))
        actor.output_std.bias.copy_(th.tensor([1e3, -1e3]))
    th.testing.assert_close(actor(x[:1]).mean, th.tensor([[1.0, -1.0]]))
    th.testing.assert_close(actor(x[:1]).std, th.tensor([[1.0, 0.1]]))


def test_a_discrete_actor_starts_close_to_uniform():
    th.manual_seed(0)
    actor = ActorHead(spaces.MultiDiscrete(UNEQUAL), SIZE)
    x = features(500)
    uniform = th.tensor(UNEQUAL).log().expand(500, 3)
    assert 0 < (actor(x).entropy() - uniform).abs().max() < 0.01
    th.nn.init.zeros_(actor.output.weight)
    th.testing.assert_close(actor(x).entropy(), uniform)
    assert ActorHead(spaces.Discrete(5), SIZE).output_std is None


def test_unimix_is_shared_equally_by_the_classes_of_each_group():
    actor = ActorHead(spaces.MultiDiscrete(UNEQUAL), replace(SIZE, actor_unimix=0.12))
    with th.no_grad():
        actor.output.bias.copy_(th.tensor([0.0, 100.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 100.0]))
        groups = actor(features(1)).probs[0]
    for group, expected in zip(groups, ([0.06, 0.94], [0.91, 0.03, 0.03, 0.03], [0.04, 0.04, 0.92]), strict=True):
        th.testing.assert_close(group[: len(expected)], th.tensor(expected))
        assert not group[len(expected) :].any()


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_noise_makes_actions_of_the_right_kind(name):
    th.manual_seed(0)
    actor = ActorHead(ACTION_SPACES[name], SIZE)
    x, noise = features(2000, 2), actor.draw_noise(2000, 2)
    actions = actor(x).sample(noise)
    assert actions.shape == noise.shape == (2000, 2, actor.noise_dim)
    if actor.sizes is None:
        assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05  # normal
        th.testing.assert_close(actions, actor(x).mean + actor(x).std * noise)
    else:
        assert noise.min() >= 0 and noise.max() < 1  # uniform
        for group, size in enumerate(actor.sizes):
            shares = th.bincount(actions[..., group].flatten(), minlength=size) / actions[..., group].numel()
            assert len(shares) == size and (shares - 1 / size).abs().max() < 0.05
    th.testing.assert_close(actor(x).mode(), actor.distribution(actor.mlp(x)).mode())


def test_actor_unimix_floors_the_probabilities():
    model = counter_model(policy_kwargs=dict(actor_unimix=0.2))
    with th.no_grad():
        model.policy.actor.output.bias[0] = 50.0
        probs = model.policy.actor(th.zeros(1, model.policy.size.features_dim)).probs
    np.testing.assert_allclose(probs[0, 0], [0.85, 0.05, 0.05, 0.05], rtol=1e-4)
