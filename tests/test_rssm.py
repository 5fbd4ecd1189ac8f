"""The recurrent state-space model: episode starts, filtering, imagination."""

import pytest
import torch as th

from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES
from sb3_dreamer.dreamerv3.rssm import RSSM

SIZE = MODEL_SIZES["nano"]
B, T, E, A = 3, 9, 12, 5


@pytest.fixture
def rssm():
    th.manual_seed(0)
    model = RSSM(E, A, SIZE)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # biases start at zero, which would hide a missing one
            th.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def sequence():
    th.manual_seed(1)
    embed, noise = th.randn(B, T, E), th.rand(B, T, SIZE.stoch)
    actions = th.nn.functional.one_hot(th.randint(A, (B, T)), A).float()
    is_first = th.zeros(B, T, dtype=th.bool)
    is_first[0, 4] = is_first[2, 0] = is_first[2, 7] = True
    stoch = th.nn.functional.one_hot(th.randint(SIZE.classes, (B, SIZE.stoch)), SIZE.classes).float()
    return embed, actions, is_first, LatentState(th.randn(B, SIZE.deter).tanh(), stoch), noise


def test_observe_equals_repeated_steps(rssm, sequence):
    embed, actions, is_first, state, noise = sequence
    states, posterior = rssm.observe(*sequence)
    for t in range(T):
        state, step_posterior = rssm.obs_step(state, actions[:, t], embed[:, t], is_first[:, t], noise[:, t])
        assert th.equal(state.deter, states.deter[:, t]) and th.equal(state.stoch, states.stoch[:, t])
        assert th.equal(step_posterior.logits, posterior.logits[:, t])


def test_reset_equals_fresh_start(rssm, sequence):
    embed, actions, is_first, initial, noise = sequence
    states, _ = rssm.observe(*sequence)
    # Row 0 starts a new episode at t = 4. From there on, the past must have no effect.
    fresh, _ = rssm.observe(
        embed[:1, 4:], th.zeros_like(actions[:1, 4:]).index_copy(1, th.arange(1, T - 4), actions[:1, 5:]),
        th.zeros(1, T - 4), rssm.initial(1), noise[:1, 4:],
    )  # fmt: skip
    assert th.allclose(fresh.deter, states.deter[:1, 4:], atol=1e-6)
    assert th.equal(fresh.stoch.argmax(-1), states.stoch[:1, 4:].argmax(-1))
    # Without the flag the past matters.
    other, _ = rssm.observe(embed, actions, th.zeros_like(is_first), initial, noise)
    assert (other.deter[0, 4] - states.deter[0, 4]).abs().max() > 1e-3
    # The GRU also runs at the first step, so deter is not zero there.
    assert states.deter[0, 4].abs().max() > 1e-3


def test_gradient_stops_at_a_reset(rssm, sequence):
    embed, *rest = sequence
    embed.requires_grad_()
    states, _ = rssm.observe(embed, *rest)
    (grad,) = th.autograd.grad(states.deter[0, 6].sum() + states.deter[1, 6].sum(), embed)
    assert grad[0, :4].abs().max() == 0.0 and grad[0, 4:6].abs().min(0).values.max() > 0.0  # new episode in row 0 at t = 4
    assert grad[1, 0].abs().max() > 0.0 and grad[:, 6:].abs().max() == 0.0


def test_actions_beyond_the_bounds_count_as_the_bounds(rssm, sequence):
    state = sequence[3]
    inside = th.tensor([[1.0, -1.0, 0.5, 0.0, 1.0]]).expand(B, A)
    outside = th.tensor([[1.7, -9.0, 0.5, 0.0, 1.0]]).expand(B, A)
    assert th.equal(rssm.core(*state, inside), rssm.core(*state, outside))


def test_stoch_is_one_hot_and_forced_classes_are_taken(rssm, sequence):
    embed, actions, is_first, initial, _ = sequence
    forced = th.randint(SIZE.classes, (B, T, SIZE.stoch))
    states, _ = rssm.observe(embed, actions, is_first, initial, forced)
    assert th.equal(states.stoch, th.nn.functional.one_hot(forced, SIZE.classes).float())  # exactly 0 or 1
    assert states.deter.abs().max() < 1.0


def test_prior_and_features(rssm, sequence):
    states, _ = rssm.observe(*sequence)
    features = rssm.features(states)
    assert features.shape == (B, T, SIZE.features_dim)
    assert th.equal(features[..., : SIZE.deter], states.deter)  # deter first
    assert rssm.prior(states.deter).logits.shape == (B, T, SIZE.stoch, SIZE.classes)
