"""Layers of the 2025 DreamerV3: RMSNorm over channels, block-diagonal linear layers, one weight initialiser."""

import math
from itertools import pairwise

import torch as th
from torch import nn
from torch.nn import functional as F

NORM_EPS = 1e-4


def init_weights(weight: th.Tensor, fan_in: int, outscale: float = 1.0) -> None:
    """
    Fill with a normal of standard deviation outscale / sqrt(fan_in), truncated at two of its own sigmas.

    :param weight: filled in place
    :param fan_in: inputs of the whole layer; for block layers the *full* input width, not that of one block
    :param outscale: 0 gives exact zeros
    """
    # 1.1368 restores the standard deviation that truncating at two sigmas takes away.
    std = 1.1368 * outscale * math.sqrt(1.0 / fan_in)
    if std == 0.0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)


class Linear(nn.Linear):
    """
    Linear layer with Dreamer's initialisation; the bias stays where a norm follows.

    :param in_features: I
    :param out_features: O
    :param outscale: factor on the initial weights (0 for reward and value outputs, 0.01 for the policy)
    """

    def __init__(self, in_features: int, out_features: int, outscale: float = 1.0):
        self.outscale = outscale
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Initialise weights (see :func:`init_weights`) and zero the bias."""
        init_weights(self.weight, self.in_features, self.outscale)
        nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """
    Block-diagonal linear layer: G groups of I/G inputs map to O/G outputs each.

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
        :param x: (N, I), groups one after the other
        :return: (N, O), groups one after the other
        """
        groups = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (G, N, I/G)
        return th.bmm(groups, self.weight).transpose(0, 1).flatten(1) + self.bias  # (N, O)


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


def hidden_layer(in_features: int, units: int) -> nn.Sequential:
    """Linear -> RMSNorm -> SiLU, the hidden block of every network in Dreamer."""
    return nn.Sequential(Linear(in_features, units), RMSNorm(units), nn.SiLU())


def create_mlp(in_features: int, units: int, n_layers: int) -> nn.Sequential:
    """
    :param in_features: width of the input
    :param units: U, width of each hidden layer
    :param n_layers: number of hidden layers, at least one
    :return: module (..., in_features) -> (..., U)
    """
    widths = [in_features] + [units] * n_layers
    return nn.Sequential(*[hidden_layer(n_in, n_out) for n_in, n_out in pairwise(widths)])
