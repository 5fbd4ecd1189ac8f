"""
The observe scan as one autograd function: the same result as :meth:`RSSM.observe`, in less time.

Three ideas make it fast. The contributions of the previous action and of the embedding do not depend on the recurrent state,
so they are computed before the loop, for all time steps at once. All layers that read the deterministic state share one
matmul. The backward loop only carries the gradients of the state; the gradient of each weight is one matmul over all time
steps, after the loop.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.distributions import OneHotCategoricalST
from sb3_dreamer.common.torch_layers import NORM_EPS, compute_dtype
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.fast.cells import (
    addmm,
    block_matmul,
    from_blocks,
    gru_step,
    matmul,
    maybe_compiled,
    norm_silu,
    sample_one_hot,
    sampling_thresholds,
    softmax,
    tanh_,
    to_blocks,
)
from sb3_dreamer.dreamerv3.fast.weights import GRUWeights, ScanWeights, gru_weights, scan_weights
from sb3_dreamer.dreamerv3.rssm import RSSM


class StepResult(NamedTuple):
    """Result of one forward step: the next state and the intermediate values that the backward loop needs."""

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
    deter_proj: th.Tensor,
    not_first: th.Tensor,
    action_in: th.Tensor,
    embed_in: th.Tensor,
    noise: th.Tensor,
    gru: GRUWeights,
    w: ScanWeights,
) -> tuple[StepResult, th.Tensor]:
    """
    :param deter: (B, D)
    :param stoch: (B, S * K)
    :param deter_proj: projection of deter by the GRU's input layer ``from_deter``, without bias (B, R)
    :param not_first: 0 where an episode begins (B, 1)
    :param action_in: contribution of the previous action to the GRU's hidden layer, with its bias (B, D)
    :param embed_in: contribution of the embedding to the posterior's hidden layer, with its bias (B, R)
    :param noise: as for :func:`sample_one_hot`
    :param gru: weights of the GRU
    :param w: all other weights
    :return: result of the step, and ``deter_proj`` for the next one (B, R)
    """
    # A reset zeroes the state, and therefore the projection that was computed before the reset.
    from_deter = th.addcmul(w.deter_bias, deter_proj, not_first)  # (B, R)
    inputs = th.stack([from_deter, addmm(w.stoch_bias, stoch * not_first, w.stoch)], dim=1)  # (B, 2, R)
    deter, hidden, gates = gru_step(deter * not_first, inputs, action_in, gru)
    deter_proj, posterior = (deter.to(w.deter.dtype) @ w.deter).to(deter.dtype).chunk(2, dim=-1)  # 2 x (B, R)
    posterior = posterior + embed_in  # (B, R)
    logits = addmm(w.logits_bias, norm_silu(posterior, w.posterior_scale), w.logits)  # (B, S * K)
    probs = softmax(logits.unflatten(-1, (noise.shape[1], -1)))  # (B, S, K)
    stoch = sample_one_hot(probs, noise).flatten(1)  # (B, S * K)
    return StepResult(deter, stoch, logits, inputs, hidden, gates, posterior, probs), deter_proj


# ---- backward ----


class NormTables(NamedTuple):
    """
    RMSNorm and SiLU with their derivatives, for all time steps at once. With x_hat = x / rms(x), u = scale * x_hat and
    y = silu(u), the gradients are

    dx = dy * (silu'(u) * scale / rms(x)) - mean(dy * silu'(u) * u) * (x_hat / rms(x)),
    dscale = sum(dy * silu'(u) * x_hat).

    All (T, ..., n), where n is the width.
    """

    y: th.Tensor
    derivatives: th.Tensor  # the factors of dx: dsilu_scale_by_rms, dsilu_u, x_hat_by_rms (T, 3, ..., n)
    dsilu_x_hat: th.Tensor  # the factor of dscale


def norm_tables(x: th.Tensor, scale: th.Tensor) -> NormTables:
    """
    :param x: pre-activations (T, ..., n)
    :param scale: of the norm
    :return: tables (T, ..., n)
    """
    inverse_rms = th.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)
    x_hat = x * inverse_rms
    u = x_hat * scale
    sigmoid = th.sigmoid(u)
    dsilu_x_hat = (sigmoid + sigmoid * u * (1.0 - sigmoid)) * x_hat
    dsilu_scale_by_rms = (sigmoid + sigmoid * u * (1.0 - sigmoid)) * scale * inverse_rms
    derivatives = th.stack([dsilu_scale_by_rms, dsilu_x_hat * scale, x_hat * inverse_rms], dim=1)
    return NormTables(u * sigmoid, derivatives, dsilu_x_hat)


def norm_backward(grad: th.Tensor, derivatives: th.Tensor) -> th.Tensor:
    """
    :param grad: dy (..., n)
    :param derivatives: of one time step, see :class:`NormTables` (3, ..., n)
    :return: dx (..., n)
    """
    dsilu_scale_by_rms, dsilu_u, x_hat_by_rms = derivatives.unbind(0)
    return th.addcmul(grad * dsilu_scale_by_rms, x_hat_by_rms, (grad * dsilu_u).mean(-1, keepdim=True), value=-1.0)


class StepTables(NamedTuple):
    """Factors that the backward loop multiplies gradients with, computed for all time steps at once. Time comes first."""

    probs: th.Tensor  # (T, B, S, K)
    posterior: th.Tensor  # derivatives of the posterior's norm (T, 3, B, R)
    gates: th.Tensor  # d deter / d gates (T, G, B, 3, D/G)
    carry: th.Tensor  # d deter / d previous deter with fixed gates, 0 at a reset (T, G, B, D/G)
    hidden: th.Tensor  # derivatives of the norm in the GRU's hidden layer (T, 3, B, D)
    inputs: th.Tensor  # derivatives of the norms in the GRU's input layers (T, 3, B, 2, R)
    not_first: th.Tensor  # (T, B, 1)

    def at(self, t: int) -> "StepTables":
        """:return: the tables of one step"""
        return StepTables(*(part[t] for part in self))


class StepGradients(NamedTuple):
    """Result of one backward step: gradients of the intermediate values, and of the previous state without its projection."""

    logits: th.Tensor  # (B, S * K)
    posterior_out: th.Tensor  # after norm and SiLU (B, R)
    posterior: th.Tensor  # (B, R)
    gates: th.Tensor  # (G, B, 3 D/G)
    hidden_out: th.Tensor  # after norm and SiLU (B, D)
    hidden: th.Tensor  # (B, D)
    inputs_out: th.Tensor  # after norm and SiLU (B, 2, R)
    inputs: th.Tensor  # (B, 2, R)
    deter: th.Tensor  # carried (B, D)
    stoch: th.Tensor  # carried (B, S * K)


def backward_step(
    grad_deter: th.Tensor,
    grad_stoch: th.Tensor,
    grad_logits: th.Tensor,
    grad_deter_proj: th.Tensor,
    tables: StepTables,
    gru: GRUWeights,
    w: ScanWeights,
    mixed: float,
) -> tuple[StepGradients, th.Tensor]:
    """
    :param grad_deter: of this step's deter, without the part from ``grad_deter_proj`` (B, D)
    :param grad_stoch: (B, S * K)
    :param grad_logits: (B, S * K)
    :param grad_deter_proj: of the projection that the next step reads (B, R)
    :param tables: of this step
    :param gru: weights of the GRU
    :param w: all other weights
    :param mixed: share of the softmax in the probabilities, 1 - unimix
    :return: gradients of the step, and ``grad_deter_proj`` for the step before it (B, R)
    """
    dtype, blocks = grad_deter.dtype, gru.blocks.shape[0]
    # Straight through: the one-hot passes its gradient to the probabilities.
    grad_probs = grad_stoch.view_as(tables.probs)  # (B, S, K)
    softmax_grad = tables.probs * (grad_probs - (grad_probs * tables.probs).sum(-1, keepdim=True))  # (B, S, K)
    logits = th.add(grad_logits, softmax_grad.flatten(1), alpha=mixed)  # (B, S * K)
    posterior_out = matmul(logits, w.logits.t())  # (B, R)
    posterior = norm_backward(posterior_out, tables.posterior)  # (B, R)
    deter = addmm(grad_deter, th.cat([grad_deter_proj, posterior], dim=-1), w.deter.t())  # (B, D)
    deter_blocks = to_blocks(deter, blocks)  # (G, B, D/G)
    gates = (tables.gates * deter_blocks.unsqueeze(2)).flatten(2)  # (G, B, 3 D/G)
    hidden_out = from_blocks(block_matmul(gates, gru.gates.mT))  # (B, D)
    hidden = norm_backward(hidden_out, tables.hidden)  # (B, D)
    hidden_blocks = to_blocks(hidden * tables.not_first, blocks)  # (G, B, D/G)
    carried = deter_blocks * tables.carry  # (G, B, D/G)
    if gru.blocks.dtype == dtype:
        carried = th.baddbmm(carried, hidden_blocks, gru.blocks.mT)
    else:
        carried = carried + block_matmul(hidden_blocks, gru.blocks.mT)
    inputs_out = matmul(hidden, gru.inputs.t()).view_as(tables.inputs[0])  # (B, 2, R)
    inputs = norm_backward(inputs_out, tables.inputs)  # (B, 2, R)
    grad_deter_proj, from_stoch = (inputs * tables.not_first.unsqueeze(-1)).unbind(1)  # 2 x (B, R)
    stoch = matmul(from_stoch, w.stoch.t())  # (B, S * K)
    grads = logits, posterior_out, posterior, gates, hidden_out, hidden, inputs_out, inputs, from_blocks(carried), stoch
    return StepGradients(*grads), grad_deter_proj


def matmul_weight_grad(x: th.Tensor, grad: th.Tensor, dtype: th.dtype) -> th.Tensor:
    """
    Gradient of the weight in ``x @ weight``.

    :param x: inputs (..., I)
    :param grad: of the outputs (..., O)
    :param dtype: of the matmul
    :return: (I, O), summed over all rows
    """
    return x.flatten(0, -2).to(dtype).t() @ grad.flatten(0, -2).to(dtype)


def block_matmul_weight_grad(x: th.Tensor, grad: th.Tensor, dtype: th.dtype) -> th.Tensor:
    """
    Gradient of the weight in :func:`block_matmul`.

    :param x: inputs (T, B, I)
    :param grad: of the outputs (T, G, B, O/G)
    :param dtype: of the matmul
    :return: (G, I/G, O/G), summed over all rows
    """
    x_blocks = to_blocks(x.flatten(0, 1), grad.shape[1])  # (G, T * B, I/G)
    return th.bmm(x_blocks.mT.to(dtype), grad.transpose(0, 1).flatten(1, 2).to(dtype))


class ObserveScan(th.autograd.Function):
    """The loop over time, forward and backward. All sequences have time first. See :func:`observe_fused`."""

    @staticmethod
    def forward(
        ctx: Any,
        unimix: float,
        is_compiled: bool,
        not_first: th.Tensor,
        noise: th.Tensor,
        deter: th.Tensor,
        stoch: th.Tensor,
        action_in: th.Tensor,
        embed_in: th.Tensor,
        *weights: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: deter (T, B, D), stoch and logits (T, B, S * K)"""
        gru, w = split_weights(weights)
        steps: list[StepResult] = []
        before, deter_proj = (deter, stoch), matmul(deter, w.deter).chunk(2, dim=-1)[0]
        step = maybe_compiled(forward_step, is_compiled)
        for t in range(len(not_first)):
            result, deter_proj = step(*before, deter_proj, not_first[t], action_in[t], embed_in[t], noise[t], gru, w)
            steps.append(result)
            before = result.deter, result.stoch
        result = StepResult(*(th.stack(parts) for parts in zip(*steps, strict=True)))
        ctx.unimix, ctx.is_compiled = unimix, is_compiled
        ctx.save_for_backward(not_first, deter, stoch, *result, *weights)
        return result.deter, result.stoch, result.logits

    @staticmethod
    def backward(ctx: Any, grad_deter: th.Tensor, grad_stoch: th.Tensor, grad_logits: th.Tensor) -> tuple[Any, ...]:
        not_first, deter, stoch, *saved = ctx.saved_tensors
        n_saved = len(StepResult._fields)
        result, (gru, w) = StepResult(*saved[:n_saved]), split_weights(saved[n_saved:])
        # States before each step, after its reset.
        deter = th.cat([deter.unsqueeze(0), result.deter[:-1]]) * not_first  # (T, B, D)
        stoch = th.cat([stoch.unsqueeze(0), result.stoch[:-1]]) * not_first  # (T, B, S * K)
        posterior = norm_tables(result.posterior, w.posterior_scale)  # (T, B, R)
        hidden = norm_tables(result.hidden, gru.scale)  # (T, B, D)
        inputs = norm_tables(result.inputs, gru.input_scale)  # (T, B, 2, R)
        tables = StepTables(
            result.probs,
            posterior.derivatives,
            *gate_tables(result.gates, deter, not_first),
            hidden.derivatives,
            inputs.derivatives,
            not_first,
        )
        steps: list[StepGradients] = []
        carried = th.zeros_like(grad_deter[0]), th.zeros_like(grad_stoch[0])
        grad_deter_proj = th.zeros_like(result.posterior[0])
        step = maybe_compiled(backward_step, ctx.is_compiled)
        for t in reversed(range(len(not_first))):
            grads = grad_deter[t] + carried[0], grad_stoch[t] + carried[1], grad_logits[t], grad_deter_proj
            gradients, grad_deter_proj = step(*grads, tables.at(t), gru, w, 1.0 - ctx.unimix)
            steps.append(gradients)
            carried = gradients.deter, gradients.stoch
        grad = StepGradients(*(th.stack(parts) for parts in zip(*reversed(steps), strict=True)))
        dtype = w.deter.dtype
        from_deter, from_stoch = grad.inputs.unbind(2)  # 2 x (T, B, R)
        gru_grads = GRUWeights(
            input_scale=(grad.inputs_out * inputs.dsilu_x_hat).sum((0, 1)),
            inputs=matmul_weight_grad(inputs.y.flatten(2), grad.hidden, dtype),
            blocks=block_matmul_weight_grad(deter, split_blocks(grad.hidden, gru.blocks.shape[0]), dtype),
            scale=(grad.hidden_out * hidden.dsilu_x_hat).sum((0, 1)),
            gates=block_matmul_weight_grad(hidden.y, grad.gates, dtype),
            gates_bias=grad.gates.sum((0, 2)).unsqueeze(1),
        )
        deter_grads = matmul_weight_grad(deter, from_deter, dtype), matmul_weight_grad(result.deter, grad.posterior, dtype)
        other_grads = ScanWeights(
            deter=th.cat(deter_grads, dim=-1),
            deter_bias=from_deter.sum((0, 1)),
            stoch=matmul_weight_grad(stoch, from_stoch, dtype),
            stoch_bias=from_stoch.sum((0, 1)),
            posterior_scale=(grad.posterior_out * posterior.dsilu_x_hat).sum((0, 1)),
            logits=matmul_weight_grad(posterior.y, grad.logits, dtype),
            logits_bias=grad.logits.sum((0, 1)),
        )
        return None, None, None, None, None, None, grad.hidden, grad.posterior, *gru_grads, *other_grads


def split_weights(weights: Sequence[th.Tensor]) -> tuple[GRUWeights, ScanWeights]:
    """:return: the weights of the GRU and all others, from one flat sequence of both"""
    n_gru = len(GRUWeights._fields)
    return GRUWeights(*weights[:n_gru]), ScanWeights(*weights[n_gru:])


def split_blocks(x: th.Tensor, blocks: int) -> th.Tensor:
    """(T, B, D) to (T, G, B, D/G), a view."""
    return x.unflatten(-1, (blocks, -1)).transpose(1, 2)


def gate_tables(gates: th.Tensor, deter: th.Tensor, not_first: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param gates: pre-activations (T, G, B, 3 D/G)
    :param deter: previous deter, after the reset (T, B, D)
    :param not_first: 0 where an episode begins (T, B, 1)
    :return: d deter / d gates (T, G, B, 3, D/G), and d deter / d previous deter with fixed gates (T, G, B, D/G)
    """
    reset, candidate, update = gates.unflatten(-1, (3, -1)).unbind(3)  # 3 x (T, G, B, D/G)
    reset, update = th.sigmoid(reset), th.sigmoid(update)
    tanh = tanh_(reset * candidate)
    before = split_blocks(deter, gates.shape[1])  # (T, G, B, D/G)
    dtanh = update * (1.0 - tanh.square())
    dgates = [
        dtanh * candidate * reset * (1.0 - reset),
        dtanh * reset,
        (tanh - before) * update * (1.0 - update),
    ]
    return th.stack(dgates, dim=3), (1.0 - update) * not_first.unsqueeze(1)


def action_contribution(rssm: RSSM, action: th.Tensor) -> th.Tensor:
    """
    :param rssm: see :func:`~sb3_dreamer.dreamerv3.fast.weights.supports_fused`
    :param action: encoded (..., A)
    :return: what the action adds to the GRU's hidden layer, bias included (..., D)
    """
    gru, size = rssm.core, rssm.size
    action = action / action.detach().abs().clamp_min(1.0)  # as in BlockGRU
    weight = gru.first_block_layer.weight[:, size.deter // size.blocks + 2 * size.hidden :]  # (G, R, D/G)
    return F.linear(gru.from_action(action), weight.transpose(1, 2).flatten(0, 1), gru.first_block_layer.bias)


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
    Same as :meth:`RSSM.observe`, except that no gradient reaches ``initial``.

    :param is_compiled: compile the steps
    """
    size, state_dtype = rssm.size, initial.deter.dtype
    dtype = compute_dtype(initial.deter)
    not_first = 1.0 - is_first.to(state_dtype).unsqueeze(-1)  # (B, T, 1)
    action_in = action_contribution(rssm, prev_actions * not_first).to(state_dtype)  # (B, T, D)
    posterior = rssm.posterior_net.mlp.first.linear
    embed_in = F.linear(embed, posterior.weight[:, size.deter :], posterior.bias).to(state_dtype)  # (B, T, R)
    thresholds = sampling_thresholds(noise, size.classes, size.unimix)  # (B, T, S, K)
    with th.autocast(embed.device.type, enabled=False):  # the scan chooses the dtype of each operation itself
        sequences = (part.transpose(0, 1).contiguous() for part in (not_first, thresholds, action_in, embed_in))
        not_first, thresholds, action_in, embed_in = sequences  # (T, B, ...)
        start = initial.deter, initial.stoch.flatten(1)
        deter, stoch, logits = ObserveScan.apply(
            size.unimix,
            is_compiled,
            not_first,
            thresholds,
            *start,
            action_in,
            embed_in,
            *gru_weights(rssm, dtype, 2),
            *scan_weights(rssm, dtype),
        )
    groups = (-1, (size.stoch, size.classes))
    state = LatentState(deter.transpose(0, 1), stoch.transpose(0, 1).unflatten(*groups))
    return state, OneHotCategoricalST(logits.transpose(0, 1).unflatten(*groups), size.unimix)
