"""Operations of a recurrent step as pure functions of tensors and weights, shared by the observe and the imagination loop."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.functional import block_linear, linear, one_hot, use_conv_matmul
from sb3_dreamer.common.torch_layers import NORM_EPS
from sb3_dreamer.dreamerv3.fast.weights import GRUWeights

Function = TypeVar("Function", bound=Callable[..., Any])


@lru_cache
def maybe_compiled(function: Function, is_compiled: bool) -> Function:
    """
    :param function: a pure step, defined at the top of a module
    :param is_compiled: whether to compile it
    :return: the function, or its compiled version, which all models share
    """
    return cast(Function, th.compile(function, dynamic=False)) if is_compiled else function


def addmm(bias: th.Tensor, x: th.Tensor, weight: th.Tensor) -> th.Tensor:
    """
    Like ``torch.addmm``, but the matmul may run in a lower precision than the sum.

    :param bias: (O,) or (N, O), in the dtype of the result
    :param x: (N, I)
    :param weight: (I, O), in the dtype of the matmul
    :return: (N, O)
    """
    if weight.dtype != bias.dtype:
        return (x.to(weight.dtype) @ weight).to(bias.dtype) + bias
    if bias.dim() == 1 and use_conv_matmul(x, len(x), weight.shape[1]):
        return linear(x, weight.t(), bias)
    return th.addmm(bias, x, weight)


def matmul(x: th.Tensor, weight: th.Tensor) -> th.Tensor:
    """
    :param x: (N, I)
    :param weight: (I, O), in the dtype of the matmul
    :return: (N, O), in the dtype of ``x``
    """
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
    """
    One matmul for each block.

    :param x: (G, N, I/G)
    :param weight: (G, I/G, O/G), in the dtype of the matmul
    :return: (G, N, O/G), in the dtype of ``x``
    """
    return block_linear(x.to(weight.dtype), weight).to(x.dtype)


def norm_silu(x: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """RMSNorm over the last axis, then SiLU. ``scale`` may have leading axes."""
    return F.silu(F.rms_norm(x, x.shape[-1:], None, NORM_EPS) * scale)


def tanh_(x: th.Tensor) -> th.Tensor:
    """Tanh in place, computed from torch's sigmoid, which takes a quarter of the time of torch's tanh."""
    return x.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


def gru_step(deter: th.Tensor, inputs: th.Tensor, bias: th.Tensor, gru: GRUWeights) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    The GRU after its input layers: hidden block layer and gates.

    :param deter: (N, D)
    :param inputs: pre-activations of the n input layers (N, n, R)
    :param bias: of the hidden layer (D,), or (N, D) with contributions of other inputs added
    :param gru: weights of the GRU
    :return: next deter (N, D), pre-activations of the hidden layer (N, D) and of the gates (G, N, 3 D/G)
    """
    blocks = gru.blocks.shape[0]
    deter_blocks = to_blocks(deter, blocks)  # (G, N, D/G)
    hidden = addmm(bias, norm_silu(inputs, gru.input_scale).flatten(1), gru.inputs)  # (N, D)
    hidden = hidden + from_blocks(block_matmul(deter_blocks, gru.blocks))  # (N, D)
    active = to_blocks(norm_silu(hidden, gru.scale), blocks)  # (G, N, D/G)
    if gru.gates.dtype == deter.dtype:
        gates = block_linear(active, gru.gates, gru.gates_bias)  # (G, N, 3 D/G)
    else:
        gates = block_matmul(active, gru.gates) + gru.gates_bias
    reset, candidate, update = gates.unflatten(-1, (3, -1)).unbind(2)  # 3 x (G, N, D/G)
    candidate = tanh_(th.sigmoid(reset).mul_(candidate))  # (G, N, D/G)
    return from_blocks(th.lerp(deter_blocks, candidate, th.sigmoid(update))), hidden, gates


def softmax(logits: th.Tensor) -> th.Tensor:
    """
    Softmax over the last axis, without gradient. Written out because torch's kernel is slow for few classes.

    :param logits: (N, S, K)
    :return: (N, S, K)
    """
    weights = (logits - logits.amax(-1, keepdim=True)).exp_()
    return weights / weights.sum(-1, keepdim=True)


def sample_one_hot(probs: th.Tensor, noise: th.Tensor) -> th.Tensor:
    """
    :param probs: before mixing with the uniform distribution (N, S, K)
    :param noise: from :func:`sampling_thresholds`, (N, S, K) or class indices (N, S)
    :return: one-hot (N, S, K)
    """
    indices = noise
    if noise.is_floating_point():
        # Rounding may leave the cumulative sum just below 1.
        indices = (probs.cumsum(-1) <= noise).sum(-1).clamp_(max=probs.shape[-1] - 1)  # (N, S)
    return one_hot(indices, probs.shape[-1], probs.dtype)


def sampling_thresholds(noise: th.Tensor, classes: int, unimix: float) -> th.Tensor:
    """
    Inverse CDF sampling takes the first class at which the cumulative sum of the mixed probabilities exceeds the noise. The
    thresholds are the same condition for the unmixed probabilities, computed for a whole sequence at once.

    :param noise: uniform (..., S), or class indices (..., S), which are returned unchanged
    :param classes: K
    :param unimix: share of the uniform distribution
    :return: (..., S, K), or the class indices (..., S)
    """
    if not noise.is_floating_point():
        return noise.long()
    uniform = th.arange(1, classes + 1, device=noise.device, dtype=noise.dtype) * (unimix / classes)  # (K,)
    return (noise.unsqueeze(-1) - uniform) / (1.0 - unimix)
