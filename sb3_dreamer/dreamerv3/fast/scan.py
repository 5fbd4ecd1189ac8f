"""
The observe scan as one autograd function: the same numbers as :meth:`RSSM.observe`, in less time.

Three ideas. What does not depend on the recurrent state is computed before the loop, for all rows at once: the shares of
the previous action and of the embedding. Whatever reads the deterministic state is one product. And the backward loop
carries only the gradients of the state; the gradient of a weight is one product over all rows, after the loop.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.distributions import OneHotCategoricalST
from sb3_dreamer.common.torch_layers import NORM_EPS, compute_dtype
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.fast.cells import (
    affine,
    block_matmul,
    core_step,
    from_blocks,
    maybe_compiled,
    norm_silu,
    product,
    sample_one_hot,
    sampling_thresholds,
    softmax,
    tanh_,
    to_blocks,
)
from sb3_dreamer.dreamerv3.fast.weights import CoreWeights, ScanWeights, core_weights, scan_weights
from sb3_dreamer.dreamerv3.rssm import RSSM


class StepResult(NamedTuple):
    """One step forward: the next state, and what the backward loop needs."""

    deter: th.Tensor  # (B, D)
    stoch: th.Tensor  # one-hot (B, S * K)
    logits: th.Tensor  # (B, S * K)
    inputs: th.Tensor  # (B, 2, R)
    hidden: th.Tensor  # (B, D)
    gates: th.Tensor  # (G, B, 3 D/G)
    posterior: th.Tensor  # (B, R)
    probs: th.Tensor  # (B, S, K)


def forward_step(
    deter: th.Tensor,
    stoch: th.Tensor,
    read: th.Tensor,
    keep: th.Tensor,
    action_in: th.Tensor,
    embed_in: th.Tensor,
    noise: th.Tensor,
    core: CoreWeights,
    w: ScanWeights,
) -> tuple[StepResult, th.Tensor]:
    """
    :param deter: (B, D)
    :param stoch: (B, S * K)
    :param read: deter times ``from_deter``, without bias (B, R)
    :param keep: 0 where an episode begins (B, 1)
    :param action_in: (B, D)
    :param embed_in: (B, R)
    :param noise: as for :func:`sample_one_hot`
    :param core: weights of the core
    :param w: all other weights
    :return: one step, and what the next one reads of its deter (B, R)
    """
    # A reset zeroes the state; what was read of it before the reset is zero then, too.
    from_deter = th.addcmul(w.deter_bias, read, keep)  # (B, R)
    inputs = th.stack([from_deter, affine(stoch * keep, w.stoch, w.stoch_bias)], dim=1)  # (B, 2, R)
    deter, hidden, gates = core_step(deter * keep, inputs, action_in, core)
    read, posterior = (deter.to(w.read.dtype) @ w.read).to(deter.dtype).chunk(2, dim=-1)  # 2 x (B, R)
    posterior = posterior + embed_in  # (B, R)
    logits = affine(norm_silu(posterior, w.posterior_scale), w.logits, w.logits_bias)  # (B, S * K)
    probs = softmax(logits.unflatten(-1, (noise.shape[1], -1)))  # (B, S, K)
    stoch = sample_one_hot(probs, noise).flatten(1)  # (B, S * K)
    return StepResult(deter, stoch, logits, inputs, hidden, gates, posterior, probs), read


# ---- backward ----


class NormTables(NamedTuple):
    """
    y = silu(scale * x / rms(x)) and its derivatives, for all rows at once (n = width):
    dx = dy * slope - radial * mean(dy * along), dscale = sum(dy * by_scale). All (T, ..., n).
    """

    value: th.Tensor
    derivatives: th.Tensor  # slope, along, radial: (T, 3, ..., n)
    by_scale: th.Tensor


def norm_tables(x: th.Tensor, scale: th.Tensor) -> NormTables:
    """
    :param x: pre-activations (T, ..., n)
    :param scale: of the norm
    :return: tables (T, ..., n)
    """
    inverse = th.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    unit = x * inverse
    scaled = unit * scale
    gate = th.sigmoid(scaled)
    by_scale = (gate + gate * scaled * (1.0 - gate)) * unit  # silu' times the normed input
    slope = (gate + gate * scaled * (1.0 - gate)) * scale * inverse
    return NormTables(scaled * gate, th.stack([slope, by_scale * scale, unit * inverse], dim=1), by_scale)


def norm_backward(grad: th.Tensor, derivatives: th.Tensor) -> th.Tensor:
    """See :class:`NormTables`; (..., n) and (3, ..., n)."""
    slope, along, radial = derivatives.unbind(0)
    return th.addcmul(grad * slope, radial, (grad * along).mean(-1, keepdim=True), value=-1.0)


class StepTables(NamedTuple):
    """What one step of the backward loop multiplies with, for all steps at once, time first."""

    probs: th.Tensor  # (T, B, S, K)
    posterior: th.Tensor  # slope, along, radial of the posterior's norm (T, 3, B, R)
    gates: th.Tensor  # d gates / d deter (T, G, B, 3, D/G)
    carry: th.Tensor  # d deter / d previous deter past the gates, 0 at a reset (T, G, B, D/G)
    hidden: th.Tensor  # slope, along, radial of the core's norm (T, 3, B, D)
    inputs: th.Tensor  # slope, along, radial of the inputs' norms (T, 3, B, 2, R)
    keep: th.Tensor  # (T, B, 1)

    def at(self, t: int) -> "StepTables":
        """:return: the tables of one step"""
        return StepTables(*(part[t] for part in self))


class StepGradients(NamedTuple):
    """One step backward: gradients of what it computed, and of the state before it past what was read of it."""

    logits: th.Tensor  # (B, S * K)
    posterior_out: th.Tensor  # after norm and SiLU (B, R)
    posterior: th.Tensor  # (B, R)
    gates: th.Tensor  # (G, B, 3 D/G)
    core_out: th.Tensor  # after norm and SiLU (B, D)
    hidden: th.Tensor  # (B, D)
    inputs_out: th.Tensor  # after norm and SiLU (B, 2, R)
    inputs: th.Tensor  # (B, 2, R)
    deter: th.Tensor  # carried (B, D)
    stoch: th.Tensor  # carried (B, S * K)


def backward_step(
    grad_deter: th.Tensor,
    grad_stoch: th.Tensor,
    grad_logits: th.Tensor,
    grad_read: th.Tensor,
    tables: StepTables,
    core: CoreWeights,
    w: ScanWeights,
    mixed: float,
) -> tuple[StepGradients, th.Tensor]:
    """
    :param grad_deter: of this step's deter, without what comes through ``grad_read`` (B, D)
    :param grad_stoch: (B, S * K)
    :param grad_logits: (B, S * K)
    :param grad_read: (B, R)
    :param tables: of this step
    :param core: weights of the core
    :param w: all other weights
    :param mixed: share of the softmax in the probabilities, 1 - unimix
    :return: one step back, and the gradient of what it read of the deter before (B, R)
    """
    dtype, blocks = grad_deter.dtype, core.blocks.shape[0]
    # Straight through: the gradient of the one-hot is that of the probabilities.
    by_group = grad_stoch.view_as(tables.probs)  # (B, S, K)
    through = tables.probs * (by_group - (by_group * tables.probs).sum(-1, keepdim=True))  # (B, S, K)
    logits = th.add(grad_logits, through.flatten(1), alpha=mixed)  # (B, S * K)
    posterior_out = product(logits, w.logits.t())  # (B, R)
    posterior = norm_backward(posterior_out, tables.posterior)  # (B, R)
    deter = affine(th.cat([grad_read, posterior], dim=-1), w.read.t(), grad_deter)  # (B, D)
    by_block = to_blocks(deter, blocks)  # (G, B, D/G)
    gates = (tables.gates * by_block.unsqueeze(2)).flatten(2)  # (G, B, 3 D/G)
    core_out = from_blocks(block_matmul(gates, core.gates.mT))  # (B, D)
    hidden = norm_backward(core_out, tables.hidden)  # (B, D)
    kept = to_blocks(hidden * tables.keep, blocks)  # (G, B, D/G)
    carried = by_block * tables.carry  # (G, B, D/G)
    if core.blocks.dtype == dtype:
        carried = th.baddbmm(carried, kept, core.blocks.mT)
    else:
        carried = carried + block_matmul(kept, core.blocks.mT)
    inputs_out = product(hidden, core.inputs.t()).view_as(tables.inputs[0])  # (B, 2, R)
    inputs = norm_backward(inputs_out, tables.inputs)  # (B, 2, R)
    read, from_stoch = (inputs * tables.keep.unsqueeze(-1)).unbind(1)  # 2 x (B, R)
    stoch = product(from_stoch, w.stoch.t())  # (B, S * K)
    grads = logits, posterior_out, posterior, gates, core_out, hidden, inputs_out, inputs, from_blocks(carried), stoch
    return StepGradients(*grads), read


def weight_gradient(x: th.Tensor, grad: th.Tensor, dtype: th.dtype) -> th.Tensor:
    """
    :param x: inputs (..., I)
    :param grad: of the outputs (..., O)
    :param dtype: of the product
    :return: (I, O), summed over all rows
    """
    return x.flatten(0, -2).to(dtype).t() @ grad.flatten(0, -2).to(dtype)


def block_weight_gradient(x: th.Tensor, grad: th.Tensor, dtype: th.dtype) -> th.Tensor:
    """
    :param x: inputs (T, B, I)
    :param grad: of the outputs (T, G, B, O/G)
    :param dtype: of the product
    :return: (G, I/G, O/G), summed over all rows
    """
    by_block = to_blocks(x.flatten(0, 1), grad.shape[1])  # (G, T * B, I/G)
    return th.bmm(by_block.mT.to(dtype), grad.transpose(0, 1).flatten(1, 2).to(dtype))


class ObserveScan(th.autograd.Function):
    """The loop over time, forward and backward; all sequences time first. See :func:`observe_fused`."""

    @staticmethod
    def forward(
        ctx: Any,
        unimix: float,
        is_compiled: bool,
        keep: th.Tensor,
        noise: th.Tensor,
        deter: th.Tensor,
        stoch: th.Tensor,
        action_in: th.Tensor,
        embed_in: th.Tensor,
        *weights: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: deter (T, B, D), stoch and logits (T, B, S * K)"""
        core, w = split_weights(weights)
        steps: list[StepResult] = []
        before, read = (deter, stoch), product(deter, w.read).chunk(2, dim=-1)[0]
        step = maybe_compiled(forward_step, is_compiled)
        for t in range(len(keep)):
            result, read = step(*before, read, keep[t], action_in[t], embed_in[t], noise[t], core, w)
            steps.append(result)
            before = result.deter, result.stoch
        result = StepResult(*(th.stack(parts) for parts in zip(*steps, strict=True)))
        ctx.unimix, ctx.is_compiled = unimix, is_compiled
        ctx.save_for_backward(keep, deter, stoch, *result, *weights)
        return result.deter, result.stoch, result.logits

    @staticmethod
    def backward(ctx: Any, grad_deter: th.Tensor, grad_stoch: th.Tensor, grad_logits: th.Tensor) -> tuple[Any, ...]:
        keep, deter, stoch, *saved = ctx.saved_tensors
        n_saved = len(StepResult._fields)
        result, (core, w) = StepResult(*saved[:n_saved]), split_weights(saved[n_saved:])
        # States before each step, after its reset.
        deter = th.cat([deter.unsqueeze(0), result.deter[:-1]]) * keep  # (T, B, D)
        stoch = th.cat([stoch.unsqueeze(0), result.stoch[:-1]]) * keep  # (T, B, S * K)
        posterior = norm_tables(result.posterior, w.posterior_scale)  # (T, B, R)
        hidden = norm_tables(result.hidden, core.scale)  # (T, B, D)
        inputs = norm_tables(result.inputs, core.input_scale)  # (T, B, 2, R)
        tables = StepTables(
            result.probs,
            posterior.derivatives,
            *gate_tables(result.gates, deter, keep),
            hidden.derivatives,
            inputs.derivatives,
            keep,
        )
        steps: list[StepGradients] = []
        carried = th.zeros_like(grad_deter[0]), th.zeros_like(grad_stoch[0])
        read = th.zeros_like(result.posterior[0])
        step = maybe_compiled(backward_step, ctx.is_compiled)
        for t in reversed(range(len(keep))):
            grads = grad_deter[t] + carried[0], grad_stoch[t] + carried[1], grad_logits[t], read
            gradients, read = step(*grads, tables.at(t), core, w, 1.0 - ctx.unimix)
            steps.append(gradients)
            carried = gradients.deter, gradients.stoch
        grad = StepGradients(*(th.stack(parts) for parts in zip(*reversed(steps), strict=True)))
        dtype = w.read.dtype
        from_deter, from_stoch = grad.inputs.unbind(2)  # 2 x (T, B, R)
        for_core = CoreWeights(
            input_scale=(grad.inputs_out * inputs.by_scale).sum((0, 1)),
            inputs=weight_gradient(inputs.value.flatten(2), grad.hidden, dtype),
            blocks=block_weight_gradient(deter, by_block(grad.hidden, core), dtype),
            scale=(grad.core_out * hidden.by_scale).sum((0, 1)),
            gates=block_weight_gradient(hidden.value, grad.gates, dtype),
            gates_bias=grad.gates.sum((0, 2)).unsqueeze(1),
        )
        by_step = weight_gradient(deter, from_deter, dtype), weight_gradient(result.deter, grad.posterior, dtype)
        for_others = ScanWeights(
            read=th.cat(by_step, dim=-1),
            deter_bias=from_deter.sum((0, 1)),
            stoch=weight_gradient(stoch, from_stoch, dtype),
            stoch_bias=from_stoch.sum((0, 1)),
            posterior_scale=(grad.posterior_out * posterior.by_scale).sum((0, 1)),
            logits=weight_gradient(posterior.value, grad.logits, dtype),
            logits_bias=grad.logits.sum((0, 1)),
        )
        return None, None, None, None, None, None, grad.hidden, grad.posterior, *for_core, *for_others


def split_weights(weights: Sequence[th.Tensor]) -> tuple[CoreWeights, ScanWeights]:
    """Undo ``(*core, *others)``."""
    n_core = len(CoreWeights._fields)
    return CoreWeights(*weights[:n_core]), ScanWeights(*weights[n_core:])


def by_block(x: th.Tensor, core: CoreWeights) -> th.Tensor:
    """(T, B, D) to (T, G, B, D/G), a view."""
    return x.unflatten(-1, (core.blocks.shape[0], -1)).transpose(1, 2)


def gate_tables(gates: th.Tensor, deter: th.Tensor, keep: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param gates: pre-activations (T, G, B, 3 D/G)
    :param deter: before the step, after its reset (T, B, D)
    :param keep: (T, B, 1)
    :return: d gates / d deter (T, G, B, 3, D/G), and d deter / d previous deter past the gates (T, G, B, D/G)
    """
    reset, candidate, update = gates.unflatten(-1, (3, -1)).unbind(3)  # 3 x (T, G, B, D/G)
    reset, update = th.sigmoid(reset), th.sigmoid(update)
    tanh = tanh_(reset * candidate)
    before = deter.unflatten(-1, (gates.shape[1], -1)).transpose(1, 2)  # (T, G, B, D/G)
    by_tanh = update * (1.0 - tanh.square())
    by_gate = [
        by_tanh * candidate * reset * (1.0 - reset),
        by_tanh * reset,
        (tanh - before) * update * (1.0 - update),
    ]
    return th.stack(by_gate, dim=3), (1.0 - update) * keep.unsqueeze(1)


def action_share(rssm: RSSM, action: th.Tensor) -> th.Tensor:
    """
    :param rssm: see :func:`~sb3_dreamer.dreamerv3.fast.weights.supports_fused`
    :param action: encoded (..., A)
    :return: what the action adds to the core's hidden layer, bias included (..., D)
    """
    core, size = rssm.core, rssm.size
    action = action / action.detach().abs().clamp_min(1.0)  # as in BlockGRU
    weight = core.block.weight[:, size.deter // size.blocks + 2 * size.hidden :]  # (G, R, D/G)
    return F.linear(core.from_action(action), weight.transpose(1, 2).flatten(0, 1), core.block.bias)


def observe_fused(
    rssm: RSSM,
    embed: th.Tensor,
    prev_actions: th.Tensor,
    is_first: th.Tensor,
    initial: LatentState,
    noise: th.Tensor,
    is_compiled: bool,
) -> tuple[LatentState, OneHotCategoricalST]:
    """
    As :meth:`RSSM.observe`; no gradient reaches ``initial``.

    :param is_compiled: compile the steps
    """
    size, state_dtype = rssm.size, initial.deter.dtype
    dtype = compute_dtype(initial.deter)
    keep = 1.0 - is_first.to(state_dtype).unsqueeze(-1)  # (B, T, 1)
    action_in = action_share(rssm, prev_actions * keep).to(state_dtype)  # (B, T, D)
    posterior = rssm.posterior_net.mlp.first.linear
    embed_in = F.linear(embed, posterior.weight[:, size.deter :], posterior.bias).to(state_dtype)  # (B, T, R)
    thresholds = sampling_thresholds(noise, size.classes, size.unimix)  # (B, T, S, K)
    with th.autocast(embed.device.type, enabled=False):  # the scan knows by itself what is computed in which dtype
        sequences = (part.transpose(0, 1).contiguous() for part in (keep, thresholds, action_in, embed_in))
        keep, thresholds, action_in, embed_in = sequences  # (T, B, ...)
        start = initial.deter, initial.stoch.flatten(1)
        deter, stoch, logits = ObserveScan.apply(
            size.unimix,
            is_compiled,
            keep,
            thresholds,
            *start,
            action_in,
            embed_in,
            *core_weights(rssm, dtype, 2),
            *scan_weights(rssm, dtype),
        )
    by_group = (-1, (size.stoch, size.classes))
    state = LatentState(deter.transpose(0, 1), stoch.transpose(0, 1).unflatten(*by_group))
    return state, OneHotCategoricalST(logits.transpose(0, 1).unflatten(*by_group), size.unimix)
