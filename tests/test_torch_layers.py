"""Layers compared with explicit sums in float64, and their initial weights."""

import math

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.torch_layers import (
    MLP,
    NORM_EPS,
    BlockLinear,
    Conv2dSame,
    HiddenLayer,
    Linear,
    NormSiLU,
    RMSNorm,
    RMSNorm2d,
    UpsampledConv2d,
    compute_dtype,
    init_weights,
)


def slow_rms_norm(x: th.Tensor, weight: th.Tensor) -> np.ndarray:
    """Row by row in float64."""
    rows, scale = x.detach().double().numpy(), weight.detach().double().numpy()
    root = np.sqrt((rows**2).mean(-1, keepdims=True) + NORM_EPS)
    return rows / root * scale


def random_norm(cls, features: int) -> RMSNorm:
    norm = cls(features)
    th.nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_rms_norm_by_hand(scale):
    th.manual_seed(0)
    norm, x = random_norm(RMSNorm, 12), scale * th.randn(2, 5, 12)
    np.testing.assert_allclose(norm(x).detach(), slow_rms_norm(x, norm.weight), rtol=1e-5, atol=1e-6)
    assert not norm(th.zeros(1, 12)).any()
    assert [name for name, _ in norm.named_parameters()] == ["weight"]  # no bias


def test_rms_norm_computes_in_float32():
    """Squares of these values overflow in float16."""
    norm, x = random_norm(RMSNorm, 8), 1e3 * th.randn(4, 8, generator=th.Generator().manual_seed(0))
    half = x.half()
    assert half.square().isinf().any() and norm(half).dtype == th.float16
    np.testing.assert_allclose(norm(half).detach().float(), slow_rms_norm(half, norm.weight), rtol=2e-3, atol=1e-3)


def test_rms_norm_of_an_image_is_over_channels():
    th.manual_seed(0)
    norm, images = random_norm(RMSNorm2d, 3), th.randn(2, 3, 4, 5)
    pixels = slow_rms_norm(images.permute(0, 2, 3, 1), norm.weight)
    np.testing.assert_allclose(norm(images).detach().permute(0, 2, 3, 1), pixels, rtol=1e-5, atol=1e-6)


@th.enable_grad()
def test_fused_norm_and_silu_have_the_same_gradients():
    th.manual_seed(0)
    x, scale = (th.randn(*shape, dtype=th.float64, requires_grad=True) for shape in ((3, 4, 6), (6,)))
    expected = th.nn.functional.silu(th.nn.functional.rms_norm(x, (6,), scale, NORM_EPS))
    th.testing.assert_close(NormSiLU.apply(x, scale), expected)
    assert th.autograd.gradcheck(NormSiLU.apply, (x, scale))


@pytest.mark.parametrize("outscale", [1.0, 0.01])
def test_initial_weights_have_the_scale_of_the_whole_layer(outscale):
    th.manual_seed(0)
    weight = th.empty(400, 300)
    init_weights(weight, fan_in=50, outscale=outscale)
    expected = outscale / math.sqrt(50)
    assert abs(weight.std() / expected - 1) < 0.01 and abs(weight.mean()) < 0.01 * expected
    assert 1.9 < weight.abs().max() / (1.1368 * expected) <= 2.0  # truncated at two sigmas
    init_weights(weight, fan_in=50, outscale=0.0)
    assert not weight.any()


def test_each_layer_is_initialised_by_its_own_inputs():
    th.manual_seed(0)
    layers = [(Linear(64, 500), 64), (BlockLinear(64, 4000, 4), 64), (Conv2dSame(8, 40), 200), (UpsampledConv2d(8, 40), 200)]
    for layer, fan_in in layers:
        assert abs(layer.weight.std() * math.sqrt(fan_in) - 1) < 0.05, layer
        assert not layer.bias.any()
    assert not Linear(4, 3, outscale=0.0).weight.any()


def test_convolutions_keep_the_size_or_double_it():
    images = th.randn(2, 3, 6, 10)
    assert Conv2dSame(3, 4)(images).shape == (2, 4, 6, 10)
    assert UpsampledConv2d(3, 4)(images).shape == (2, 4, 12, 20)


def test_a_hidden_layer_is_linear_norm_silu_with_or_without_gradient():
    th.manual_seed(0)
    layer, x = HiddenLayer(7, 12), th.randn(2, 3, 7)
    for parameter in (layer.linear.bias, layer.norm.weight):
        th.nn.init.normal_(parameter)
    z = x.double() @ layer.linear.weight.double().T + layer.linear.bias.double()
    y = slow_rms_norm(z, layer.norm.weight)
    expected = y / (1 + np.exp(-y))
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-4, atol=1e-5)
    with th.no_grad():
        np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_an_mlp_is_a_sequence_of_layers():
    mlp, x = MLP(5, 8, 3), th.randn(4, 5)
    assert [layer.linear.weight.shape for layer in (mlp.first, *mlp.rest)] == [(8, 5), (8, 8), (8, 8)]
    expected = x
    for layer in (mlp.first, *mlp.rest):
        expected = layer(expected)
    assert th.equal(mlp(x), expected)


def test_matmuls_follow_autocast():
    x = th.zeros(1)
    assert compute_dtype(x) == th.float32 and compute_dtype(x.double()) == th.float64
    with th.autocast("cpu", dtype=th.bfloat16):
        assert compute_dtype(x) == th.bfloat16


def test_block_linear_is_a_block_diagonal_linear():
    th.manual_seed(0)
    layer = BlockLinear(12, 20, 4)
    th.nn.init.normal_(layer.bias)
    dense = th.block_diag(*layer.weight)  # (12, 20)
    x = th.randn(7, 12)
    assert th.allclose(layer(x), x @ dense + layer.bias, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (1, 3)])
@th.enable_grad()
def test_upsampled_convolution_equals_upsampling_and_convolution(height, width):
    layer = UpsampledConv2d(6, 4).double()
    th.nn.init.normal_(layer.bias)
    images = th.randn(3, 6, height, width, dtype=th.float64, requires_grad=True)
    upsampled = th.nn.functional.interpolate(images, scale_factor=2.0, mode="nearest")
    expected = th.nn.functional.conv2d(upsampled, layer.weight, layer.bias, padding=2)
    ours = layer(images)
    th.testing.assert_close(ours, expected)
    direction = th.randn_like(expected)
    inputs = (images, layer.weight, layer.bias)
    for mine, theirs in zip(
        th.autograd.grad(ours, inputs, direction), th.autograd.grad(expected, inputs, direction), strict=True
    ):
        th.testing.assert_close(mine, theirs)
