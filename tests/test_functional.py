"""Matmuls as convolutions: the same results and gradients, used only where they are faster."""

import pytest
import torch as th
from torch.nn import functional as F

from sb3_dreamer.common import functional
from sb3_dreamer.dreamerv3 import networks
from sb3_dreamer.dreamerv3.fast.loss import PrecomputedLinear
from tests.support.helpers import ACTION_SPACES, IMAGE, make_policy, random_batch

CLOSE = dict(rtol=1e-4, atol=1e-4)  # float32, another order of summation


@pytest.fixture(params=[True, False], ids=["convolved", "plain"])
def route(request, monkeypatch):
    """Run with and without convolutions, on any processor. Checks whether convolutions were used."""
    monkeypatch.setattr(functional, "USE_CONV_MATMUL", request.param)
    convolutions = []
    right = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *args, **kwargs: convolutions.append(1) or right(*args, **kwargs))
    yield
    assert bool(convolutions) == request.param


@pytest.mark.parametrize("lead", [(512,), (32, 16), (272,)], ids=str)
def test_linear(lead, route):
    x, weight, bias = (th.randn(*shape, requires_grad=True) for shape in ((*lead, 24), (40, 24), (40,)))
    grad = th.randn(*lead, 40)
    ours, expected = functional.linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.shape == expected.shape
    th.testing.assert_close(ours, expected, **CLOSE)
    gradients = (th.autograd.grad(result, (x, weight, bias), grad) for result in (ours, expected))
    for got, wanted in zip(*gradients, strict=True):
        th.testing.assert_close(got, wanted, **CLOSE)
    rows = x.detach().flatten(0, -2)
    th.testing.assert_close(functional.linear(rows, weight.t().contiguous().t()), rows @ weight.t(), **CLOSE)


@pytest.mark.parametrize("has_bias", [True, False])
def test_block_linear(has_bias, route):
    x, weight = th.randn(256, 4 * 16).unflatten(1, (4, 16)).transpose(0, 1), th.randn(4, 16, 32)  # (G, N, I/G)
    bias = th.randn(4, 1, 32) if has_bias else None
    expected = x @ weight + (0.0 if bias is None else bias)
    th.testing.assert_close(functional.block_linear(x, weight, bias), expected, **CLOSE)


def test_linear_weight_grad(monkeypatch):
    x, grad = th.randn(512, 24), th.randn(512, 40)
    for use_conv_matmul in (True, False):
        monkeypatch.setattr(functional, "USE_CONV_MATMUL", use_conv_matmul)
        th.testing.assert_close(functional.linear_weight_grad(x, grad), grad.t() @ x, **CLOSE)


def test_small_or_other_inputs_use_matmul(monkeypatch):
    monkeypatch.setattr(functional, "USE_CONV_MATMUL", True)
    x = th.randn(256, 24)
    assert functional.use_conv_matmul(x, 256, 16)
    assert not functional.use_conv_matmul(x.double(), 256, 16)
    assert not functional.use_conv_matmul(x, 256, 15)
    assert not functional.use_conv_matmul(x, 16, 16)
    assert not functional.use_conv_matmul(x, 257, 16)
    with th.autocast("cpu", th.bfloat16):
        assert not functional.use_conv_matmul(x, 256, 16)


def test_a_precomputed_layer_has_the_gradient_of_the_layer():
    x, weight, bias = th.randn(5, 3, 4), th.randn(6, 4, requires_grad=True), th.randn(6, requires_grad=True)
    result = F.linear(x, weight, bias)
    known = PrecomputedLinear.apply(result.detach(), x, weight, bias)
    assert th.equal(known, result)
    grad = th.randn_like(result)
    for got, wanted in zip(*(th.autograd.grad(y, (weight, bias), grad) for y in (known, result)), strict=True):
        th.testing.assert_close(got, wanted)


def test_chunks_of_images_give_the_same_results(monkeypatch):
    policy = make_policy(IMAGE, ACTION_SPACES["discrete"])
    model, batch = policy.world_model, random_batch(policy, 3, 5)
    images, (deter, stoch) = batch.observations.flatten(0, 1), policy.world_model.rssm.initial(15)
    whole = model.encoder(images), model.decoder(deter, stoch)["obs"].mode()
    monkeypatch.setattr(networks, "CHUNK_NUMEL", 1)
    chunked = model.encoder(images), model.decoder(deter, stoch)["obs"].mode()
    for got, wanted in zip(chunked, whole, strict=True):
        th.testing.assert_close(got, wanted)
