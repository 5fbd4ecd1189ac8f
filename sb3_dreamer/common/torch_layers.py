"""Layers of DreamerV3 (2025 version): RMSNorm over channels, block-diagonal linear layers, and weight initialisation."""

import math
from itertools import pairwise
from typing import Any, cast

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.functional import linear

NORM_EPS = 1e-4


def compute_dtype(like: th.Tensor) -> th.dtype:
    """:return: dtype of matmuls: that of autocast if it is enabled, otherwise that of the tensor"""
    device_type = like.device.type
    return th.get_autocast_dtype(device_type) if th.is_autocast_enabled(device_type) else like.dtype


def init_weights(weight: th.Tensor, fan_in: int, outscale: float = 1.0) -> None:
    """
    Fill with a truncated normal distribution of standard deviation outscale / sqrt(fan_in).

    :param weight: filled in place
    :param fan_in: number of inputs of the layer; for block layers that of all blocks together
    :param outscale: scale of the weights; 0 gives exact zeros
    """
    # The factor 1.1368 compensates for truncation at two sigmas, which reduces the standard deviation.
    std = 1.1368 * outscale * math.sqrt(1.0 / fan_in)
    if std == 0.0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)


class Linear(nn.Linear):
    """
    Linear layer with Dreamer's initialisation. It has a bias even before a norm.

    :param in_features: I
    :param out_features: O
    :param outscale: scale of the initial weights (0 for reward and value outputs, 0.01 for the policy)
    """

    def __init__(self, in_features: int, out_features: int, outscale: float = 1.0):
        self.outscale = outscale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Initialise weights (see :func:`init_weights`) and zero the bias."""
        init_weights(self.weight, self.in_features, self.outscale)
        nn.init.zeros_(self.bias)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., I)
        :return: (..., O)
        """
        return linear(x, self.weight, self.bias)


class BlockLinear(nn.Module):
    """
    Block-diagonal linear layer: G blocks, each of which maps I/G inputs to O/G outputs.

    :param in_features: I, a multiple of ``blocks``
    :param out_features: O, a multiple of ``blocks``
    :param blocks: G
    """

    def __init__(self, in_features: int, out_features: int, blocks: int):
        super().__init__()
        self.blocks = blocks
        self.weight = nn.Parameter(th.empty(blocks, in_features // blocks, out_features // blocks))
        self.bias = nn.Parameter(th.zeros(out_features))
        init_weights(self.weight, in_features)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (N, I), one block after the other
        :return: (N, O), one block after the other
        """
        x_blocks = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (G, N, I/G)
        return th.bmm(x_blocks, self.weight).transpose(0, 1).flatten(1) + self.bias  # (N, O)


class RMSNorm(nn.Module):
    """
    Root-mean-square norm over the last axis, in float32, with a scale and no shift.

    :param features: length of the last axis
    """

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(th.ones(features))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., features)
        :return: the same shape and dtype
        """
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, NORM_EPS).to(x.dtype)


class NormSiLU(th.autograd.Function):
    """RMSNorm over the last axis, then SiLU, in float32. Needs a third of the memory passes of autograd."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, scale: th.Tensor) -> th.Tensor:
        """
        :param ctx: for the backward pass
        :param x: (..., n)
        :param scale: (n,)
        :return: same shape and dtype as ``x``
        """
        wide = x.to(scale.dtype)  # (..., n)
        inverse_rms = th.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)  # (..., 1)
        x_hat = wide * inverse_rms  # (..., n)
        ctx.save_for_backward(x_hat, inverse_rms, scale)
        ctx.dtype = x.dtype
        return F.silu(x_hat * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        x_hat, inverse_rms, scale = ctx.saved_tensors
        grad_u = th.ops.aten.silu_backward(grad.to(scale.dtype), x_hat * scale)  # gradient of u = x_hat * scale (..., n)
        grad_scale = grad_u * x_hat  # not yet summed over rows (..., n)
        mean = (grad_scale @ scale).unsqueeze(-1) / len(scale)  # of grad_x_hat * x_hat (..., 1)
        grad_x = th.addcmul(grad_u * scale, x_hat, mean, value=-1.0).mul_(inverse_rms)  # (..., n)
        return grad_x.to(ctx.dtype), grad_scale.flatten(0, -2).sum(0)


class RMSNorm2d(RMSNorm):
    """RMSNorm over the channels of an image (N, C, h, w), not over space."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (N, C, h, w)
        :return: (N, C, h, w)
        """
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Conv2dSame(nn.Conv2d):
    """5x5 convolution that keeps the size (zero padding of 2), with Dreamer's initialisation."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=5, padding=2)

    def reset_parameters(self) -> None:
        """Initialise weights (see :func:`init_weights`) and zero the bias."""
        init_weights(self.weight, 25 * self.in_channels)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


class UpsampledConv2d(Conv2dSame):
    """
    Nearest-neighbour upsampling by two, then a 5x5 convolution, without materialising the upsampled image. In that image,
    neighbouring kernel taps read the same pixel, so each of the four output phases is a 3x3 convolution of the small image.
    Same result with 9 instead of 25 multiplications per output. The parameter is still the 5x5 kernel.
    """

    phases: th.Tensor

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels)
        # Which of the five taps read which of the three pixels, for even and odd outputs.
        even = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
        odd = [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
        self.register_buffer("phases", th.tensor([even, odd], dtype=th.float32), persistent=False)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (N, C, h, w)
        :return: (N, C', 2h, 2w)
        """
        with th.autocast(x.device.type, enabled=False):  # sum weights in their own precision
            weight = th.einsum("oiyx,aky,blx->oabikl", self.weight, self.phases, self.phases)  # (C', 2, 2, C, 3, 3)
            assert self.bias is not None
            bias = self.bias.repeat_interleave(4)  # (4 C',)
        return F.pixel_shuffle(F.conv2d(x, weight.flatten(0, 2), bias, padding=1), 2)


class HiddenLayer(nn.Sequential):
    """
    Linear -> RMSNorm -> SiLU, the hidden layer of all networks in Dreamer.

    :param in_features: I
    :param units: U
    """

    def __init__(self, in_features: int, units: int):
        super().__init__(Linear(in_features, units), RMSNorm(units), nn.SiLU())

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., I)
        :return: (..., U)
        """
        return self.activate(self.linear(x))

    def activate(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: output of the linear layer (..., U)
        :return: (..., U)
        """
        # Without gradients, batches are small (acting), so launch overhead dominates.
        return NormSiLU.apply(x, self.norm.weight) if th.is_grad_enabled() else F.silu(self.norm(x))

    @property
    def linear(self) -> Linear:
        """The linear layer."""
        return cast(Linear, self[0])

    @property
    def norm(self) -> RMSNorm:
        """The norm after it."""
        return cast(RMSNorm, self[1])


class MLP(nn.Sequential):
    """
    Hidden layers one after the other, (..., in_features) -> (..., U).

    :param in_features: width of the input
    :param units: U, width of each hidden layer
    :param n_layers: number of hidden layers, at least one
    """

    def __init__(self, in_features: int, units: int, n_layers: int):
        widths = [in_features] + [units] * n_layers
        super().__init__(*[HiddenLayer(n_in, n_out) for n_in, n_out in pairwise(widths)])

    @property
    def first(self) -> HiddenLayer:
        """The input layer."""
        return cast(HiddenLayer, self[0])

    @property
    def rest(self) -> "list[HiddenLayer]":
        """All layers after the input layer."""
        return [cast(HiddenLayer, layer) for layer in list(self)[1:]]
