"""Distributions compared with slow, simple versions."""

import math

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.distributions import (
    Bernoulli,
    BoundedNormal,
    Categorical,
    ImageMSE,
    MultiCategorical,
    OneHotCategoricalST,
    SymexpTwoHot,
    SymlogMSE,
    symexp,
    symexp_bins,
    symlog,
)


def dense_two_hot(x: float, bins: np.ndarray) -> np.ndarray:
    """The dense target, one bin at a time."""
    target = np.zeros(len(bins))
    if x <= bins[0]:
        target[0] = 1.0
    elif x >= bins[-1]:
        target[-1] = 1.0
    else:
        k = max(i for i in range(len(bins)) if bins[i] <= x)
        share = (x - bins[k]) / (bins[k + 1] - bins[k])
        target[k], target[k + 1] = 1.0 - share, share
    return target


@pytest.mark.parametrize("n_bins", [5, 40, 255])
def test_two_hot_loss_equals_the_dense_form(n_bins):
    bins = symexp_bins(n_bins)
    values = th.tensor([0.0, 1e-6, -1.0, 3.7, 123.4, -9e4, 1e9, -1e10, float(bins[1]), float(bins[-1])])
    th.manual_seed(0)
    logits = th.randn(len(values), n_bins)
    targets = np.stack([dense_two_hot(float(x), bins.double().numpy()) for x in values])
    expected = -(th.as_tensor(targets) * th.log_softmax(logits.double(), -1)).sum(-1)
    np.testing.assert_allclose(SymexpTwoHot(logits, bins).loss(values), expected, rtol=1e-5)


def test_two_hot_round_trip():
    bins = symexp_bins(255)
    values = th.tensor([0.0, 0.3, -1.0, 17.5, -2500.0])
    targets = th.as_tensor(np.stack([dense_two_hot(float(x), bins.double().numpy()) for x in values])).float()
    mean = SymexpTwoHot(targets.clamp_min(1e-30).log(), bins).mean()
    np.testing.assert_allclose(mean, values, rtol=1e-4, atol=1e-6)


def test_two_hot_mean_is_exactly_zero_at_uniform_logits():
    for n_bins in (40, 255):
        for level in (0.0, 3.3):
            assert SymexpTwoHot(th.full((7, n_bins), level), symexp_bins(n_bins)).mean().eq(0.0).all()
    naive = (th.full((255,), 1 / 255) * symexp_bins(255)).sum()
    assert naive != 0.0  # result of a left-to-right sum


def test_bins():
    bins = symexp_bins(255)
    assert th.equal(bins, -bins.flip(0)) and bins[127] == 0.0
    assert bins[-1].item() == pytest.approx(math.expm1(20.0))
    assert (bins.diff() > 0).all() and len(symexp_bins(40)) == 40


def test_symlog_round_trip():
    x = th.tensor([-1e6, -1.0, 0.0, 1e-4, 50.0])
    np.testing.assert_allclose(symexp(symlog(x)), x, rtol=1e-4)
    assert symlog(th.tensor(math.e - 1)).item() == pytest.approx(1.0)


def test_unimix_is_a_lower_bound_of_every_class():
    dist = OneHotCategoricalST(th.tensor([[100.0, 0.0, 0.0, 0.0]]), unimix=0.01)
    np.testing.assert_allclose(dist.probs[0], [0.9925, 0.0025, 0.0025, 0.0025], rtol=1e-5)
    assert dist.entropy().item() == pytest.approx(-(0.9925 * math.log(0.9925) + 3 * 0.0025 * math.log(0.0025)), rel=1e-4)


def test_kl_by_hand():
    p = Categorical(th.log(th.tensor([[0.5, 0.5]])))
    q = Categorical(th.log(th.tensor([[0.9, 0.1]])))
    assert p.kl(q).item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert p.kl(p).item() == pytest.approx(0.0)


def test_inverse_cdf_sampling():
    dist = Categorical(th.log(th.tensor([[0.2, 0.5, 0.3]])))
    u = th.tensor([[0.0], [0.199], [0.201], [0.699], [0.701], [0.9999999]])
    assert dist.sample(u)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    th.manual_seed(0)
    share = th.bincount(dist.sample(th.rand(20_000, 1))[:, 0]) / 20_000
    np.testing.assert_allclose(share, [0.2, 0.5, 0.3], atol=0.012)
    # A class of probability zero is never drawn, not even with noise 0.
    assert Categorical(th.tensor([[-1e9, 0.0]])).sample(th.zeros(1, 1)).item() == 1


def test_straight_through_gradient():
    logits = th.randn(3, 2, 5, requires_grad=True)
    dist = OneHotCategoricalST(logits, 0.01)
    sample = dist.rsample(th.rand(3, 2))
    assert set(sample.detach().unique().tolist()) == {0.0, 1.0} and (sample.sum(-1) == 1.0).all()
    weights = th.randn(3, 2, 5)
    (grad,) = th.autograd.grad((sample * weights).sum(), logits, retain_graph=True)
    (expected,) = th.autograd.grad((dist.probs * weights).sum(), logits)
    assert th.allclose(grad, expected, atol=1e-7)


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_unequal_groups(unimix):
    sizes = [2, 5, 3]
    flat = th.randn(4, 10, requires_grad=True)
    dist = MultiCategorical(flat, sizes, unimix)
    singles = [Categorical(part.unsqueeze(-2), unimix) for part in flat.split(sizes, -1)]
    target = th.tensor([[1, 4, 2], [0, 0, 0], [1, 2, 1], [0, 3, 2]])
    for g, single in enumerate(singles):
        np.testing.assert_allclose(
            dist.log_prob(target)[:, g].detach(), single.log_prob(target[:, g : g + 1])[:, 0].detach(), rtol=1e-4
        )
        np.testing.assert_allclose(dist.entropy()[:, g].detach(), single.entropy()[:, 0].detach(), rtol=1e-4)
    (grad,) = th.autograd.grad(dist.entropy().sum() + dist.loss(target).sum(), flat)
    assert th.isfinite(grad).all()
    samples = dist.sample(th.rand(4000, 4, 3))
    assert (samples.flatten(0, 1).max(0).values == th.tensor(sizes) - 1).all()
    assert (dist.sample(th.full((4, 3), 0.9999999)) <= th.tensor(sizes) - 1).all()
    assert (dist.mode() < th.tensor(sizes)).all()


def test_bounded_normal():
    dist = BoundedNormal(th.tensor([[0.0, 100.0]]), th.tensor([[0.0, -100.0]]))
    np.testing.assert_allclose(dist.mode(), [[0.0, 1.0]])
    np.testing.assert_allclose(dist.std, [[0.1 + 0.9 / (1 + math.exp(-2.0)), 0.1]], rtol=1e-6)
    assert dist.log_prob(th.tensor([[0.0, 1.5]]))[0, 1].item() == pytest.approx(
        -12.5 - math.log(0.1 * math.sqrt(2 * math.pi)), rel=1e-5
    )
    np.testing.assert_allclose(dist.sample(th.tensor([[0.0, 2.0]])), [[0.0, 1.2]], rtol=1e-6)


def test_bernoulli_with_soft_target():
    loss = Bernoulli(th.tensor([0.0, 2.0])).loss(th.tensor([0.99, 0.5]))
    p = 1 / (1 + math.exp(-2.0))
    np.testing.assert_allclose(loss, [math.log(2.0), -0.5 * math.log(p) - 0.5 * math.log(1 - p)], rtol=1e-5)


def test_reconstruction_losses_are_sums():
    vector = SymlogMSE(th.zeros(2, 3))
    np.testing.assert_allclose(vector.loss(th.full((2, 3), math.e - 1.0)), [3.0, 3.0], rtol=1e-5)
    image = ImageMSE(th.full((1, 3, 4, 5), 0.25))
    np.testing.assert_allclose(image.loss(th.full((1, 3, 4, 5), 0.75)), [60 * 0.25], rtol=1e-6)


def test_everything_is_float32_below():
    logits = th.randn(4, 255, dtype=th.bfloat16)
    assert SymexpTwoHot(logits, symexp_bins(255)).mean().dtype == th.float32
    assert Categorical(logits).entropy().dtype == th.float32
    assert BoundedNormal(logits, logits).std.dtype == th.float32
    assert Categorical(logits.double()).entropy().dtype == th.float64
