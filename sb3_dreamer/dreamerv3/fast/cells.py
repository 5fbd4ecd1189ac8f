"""Pieces of a recurrent step as pure functions of tensors and weights, for the loops of observing and dreaming."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.functional import block_linear, linear, one_hot, use_conv_matmul
from sb3_dreamer.common.torch_layers import NORM_EPS
from sb3_dreamer.dreamerv3.fast.weights import CoreWeights

Function = TypeVar("Function", bound=Callable[..., Any])


@lru_cache
def maybe_compiled(function: Function, is_compiled: bool) -> Function:
    """
    :param function: a pure step, defined at the top of a module
    :param is_compiled: whether to compile it
    :return: the function, or its compiled version, which all models share
    """
    return cast(Function, th.compile(function, dynamic=False)) if is_compiled else function


def affine(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    :param x: (N, I)
    :param weight: (I, O), its dtype is that of the product
    :param bias: (O,) or (N, O), its dtype is that of the result
    :return: (N, O)
    """
    if weight.dtype != bias.dtype:
        return (x.to(weight.dtype) @ weight).to(bias.dtype) + bias
    if bias.dim() == 1 and use_conv_matmul(x, len(x), weight.shape[1]):
        return linear(x, weight.t(), bias)
    return th.addmm(bias, x, weight)


def product(x: th.Tensor, weight: th.Tensor) -> th.Tensor:
    """(N, I) times (I, O), computed in the dtype of the weight and returned in that of ``x``."""
    rows = x.to(weight.dtype)  # (N, I)
    result = linear(rows, weight.t()) if use_conv_matmul(rows, len(x), weight.shape[1]) else rows @ weight  # (N, O)
    return result.to(x.dtype)


def to_blocks(x: th.Tensor, blocks: int) -> th.Tensor:
    """(N, G * n) to (G, N, n), a view."""
    return x.unflatten(-1, (blocks, -1)).transpose(0, 1)


def from_blocks(x: th.Tensor) -> th.Tensor:
    """(G, N, n) to (N, G * n)."""
    return x.transpose(0, 1).flatten(1)


def block_matmul(x: th.Tensor, weight: th.Tensor) -> th.Tensor:
    """(G, N, I/G) times (G, I/G, O/G), computed in the dtype of the weight and returned in that of ``x``."""
    return block_linear(x.to(weight.dtype), weight).to(x.dtype)


def norm_silu(x: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """RMSNorm over the last axis, then SiLU; ``scale`` may have leading axes."""
    return F.silu(F.rms_norm(x, x.shape[-1:], None, NORM_EPS) * scale)


def tanh_(x: th.Tensor) -> th.Tensor:
    """In place, by way of the library's sigmoid, which takes a quarter of the time of its tanh."""
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


def core_step(
    deter: th.Tensor, inputs: th.Tensor, bias: th.Tensor, core: CoreWeights
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    The recurrent core behind its first layers: hidden block layer and gates.

    :param deter: (N, D)
    :param inputs: pre-activations of the first layers (N, I, R)
    :param bias: of the hidden layer, (D,) or, with the shares of other inputs, (N, D)
    :param core: weights
    :return: next deter (N, D), pre-activations of the hidden layer (N, D) and of the gates (G, N, 3 D/G)
    """
    blocks = core.blocks.shape[0]
    by_block = to_blocks(deter, blocks)  # (G, N, D/G)
    hidden = affine(norm_silu(inputs, core.input_scale).flatten(1), core.inputs, bias)  # (N, D)
    hidden = hidden + from_blocks(block_matmul(by_block, core.blocks))  # (N, D)
    active = to_blocks(norm_silu(hidden, core.scale), blocks)  # (G, N, D/G)
    if core.gates.dtype == deter.dtype:
        gates = block_linear(active, core.gates, core.gates_bias)  # (G, N, 3 D/G)
    else:
        gates = block_matmul(active, core.gates) + core.gates_bias
    reset, candidate, update = gates.unflatten(-1, (3, -1)).unbind(2)  # 3 x (G, N, D/G)
    candidate = tanh_(th.sigmoid(reset).mul_(candidate))  # (G, N, D/G)
    return from_blocks(th.lerp(by_block, candidate, th.sigmoid(update))), hidden, gates


def softmax(logits: th.Tensor) -> th.Tensor:
    """
    Over the last axis, without gradient. Written out, for the library's kernel is slow where classes are few.

    :param logits: (N, S, K)
    :return: (N, S, K)
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    return weights / weights.sum(-1, keepdim=True)


def sample_one_hot(probs: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param probs: before mixing with the uniform (N, S, K)
    :param noise: from :func:`sampling_thresholds`, (N, S, K) or class indices (N, S)
    :return: one-hot (N, S, K)
    """
    indices = noise
    if noise.is_floating_point():
        # The cumulative sum may end a rounding error below 1.
        indices = (probs.cumsum(-1) <= noise).sum(-1).clamp_(max=probs.shape[-1] - 1)  # (N, S)
    return one_hot(indices, probs.shape[-1], probs.dtype)


def sampling_thresholds(noise: th.Tensor, classes: int, unimix: float) -> th.Tensor:
    """
    Inverse CDF sampling from the mixture asks where its cumulative sum passes the noise; solved here, for a whole sequence,
    for the cumulative sum of the unmixed probabilities.

    :param noise: uniform (..., S), or class indices, which are returned as they are
    :param classes: K
    :param unimix: share of the uniform distribution
    :return: (..., S, K)
    """
    if not noise.is_floating_point():
        return noise.long()
    uniform = th.arange(1, classes + 1, device=noise.device, dtype=noise.dtype) * (unimix / classes)  # (K,)
    return (noise.unsqueeze(-1) - uniform) / (1.0 - unimix)
