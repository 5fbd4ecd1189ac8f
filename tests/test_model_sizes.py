"""Parameter counts: equal to the official model, and fixed for the letter sizes."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES, ModelSize, resolve_model_size
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.support.sizes import LETTERS, OFFICIAL_IMAGE, OFFICIAL_VECTOR

IMAGE_CASE = (spaces.Box(0, 255, (3, 64, 64), np.uint8), spaces.Discrete(6))
VECTOR_CASE = (spaces.Box(-np.inf, np.inf, (24,)), spaces.Box(-1.0, 1.0, (6,)))
ATARI_CASE = (spaces.Box(0, 255, (1, 96, 96), np.uint8), spaces.Discrete(18))


def build(case, name: str) -> DreamerPolicy:
    with th.device("meta"):
        return DreamerPolicy(*case, lambda _: 0.0, model_size=name)


def count(module: th.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counts(policy: DreamerPolicy) -> tuple[int, ...]:
    world_model = policy.world_model
    parts = (world_model.encoder, world_model.rssm, world_model.decoder, world_model.reward_head)
    heads = (world_model.continue_head, policy.actor, policy.critic)
    return *(count(part) for part in parts + heads), sum(p.numel() for p in policy.trainable_parameters())


@pytest.mark.parametrize("name", OFFICIAL_IMAGE)
def test_official_counts_image(name):
    policy = build(IMAGE_CASE, name)
    assert counts(policy) == OFFICIAL_IMAGE[name]
    assert count(policy.critic_target) == count(policy.critic)


@pytest.mark.parametrize("name", OFFICIAL_VECTOR)
def test_official_counts_vector(name):
    result = counts(build(VECTOR_CASE, name))
    assert (*result[:3], result[-1]) == OFFICIAL_VECTOR[name]


@pytest.mark.parametrize(("name", "total"), [("12m", 11_808_850), ("200m", 186_936_082)])
def test_official_counts_atari(name, total):
    assert counts(build(ATARI_CASE, name))[-1] == total


@pytest.mark.parametrize("name", LETTERS)
def test_letter_counts_are_frozen(name):
    assert (counts(build(IMAGE_CASE, name))[-1], counts(build(VECTOR_CASE, name))[-1]) == LETTERS[name]


def test_every_size_is_counted():
    assert set(MODEL_SIZES) == set(LETTERS) | set(OFFICIAL_IMAGE)


def test_names():
    assert resolve_model_size("auto", has_images=False) == MODEL_SIZES["1m"]
    assert resolve_model_size("auto", has_images=True) == MODEL_SIZES["12m"]
    assert resolve_model_size("size12m") == resolve_model_size("12m", has_images=True)
    assert resolve_model_size("S", deter=64).deter == 64
    with pytest.raises(ValueError, match=r"`model_size` must be 'auto' or one of .*12m.*, got 'huge'"):
        resolve_model_size("huge")


@pytest.mark.parametrize(
    ("field", "value"),
    [("units", 0), ("stoch", 2.5), ("unimix", 1.0), ("cnn_multipliers", ()), ("cnn_multipliers", "double"), ("deter", 30)],
)
def test_bad_dimensions(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        ModelSize(**{field: value})


def test_a_size_that_changes_little_is_warned_of():
    dimensions = dict(deter=16, hidden=8, stoch=2, classes=4, units=8, blocks=4)
    with pytest.warns(
        UserWarning, match="`model_size`='XS' changes little: `policy_kwargs` sets classes, deter, hidden, stoch"
    ):
        resolve_model_size("XS", **dimensions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_model_size("auto", **dimensions)
        resolve_model_size("XS", units=8)
