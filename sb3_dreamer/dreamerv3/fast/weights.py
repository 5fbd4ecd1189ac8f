"""
The parameters in the layout of the fused loops: transposed, so that a layer is ``inputs @ weights``.

Matrices have the dtype of the matmuls, everything else has the dtype of the state. Every field is a view, slice or copy of
the stored parameters, made inside the autograd graph, so gradients reach the parameters.
"""

from typing import NamedTuple

import torch as th

from sb3_dreamer.common.functional import device_constant
from sb3_dreamer.dreamerv3.heads import ActorHead
from sb3_dreamer.dreamerv3.rssm import RSSM


def supports_fused(rssm: RSSM, actor: ActorHead) -> bool:
    """
    :param rssm: of the world model
    :param actor: of the policy
    :return: whether the fused loops support this model: no custom classes, and one hidden layer in both GRU and posterior
    """
    has_one_layer = rssm.size.dynamics_layers == rssm.size.posterior_layers == 1
    return type(rssm) is RSSM and type(actor) is ActorHead and has_one_layer


class GRUWeights(NamedTuple):
    """Weights of the GRU: the norms of its n input layers, and all layers after them."""

    input_scale: th.Tensor  # (n, R), norms of the input layers
    inputs: th.Tensor  # (n * R, D), from the inputs to all blocks
    blocks: th.Tensor  # (G, D/G, D/G), from each block's own slice of deter
    scale: th.Tensor  # (D,)
    gates: th.Tensor  # (G, D/G, 3 D/G)
    gates_bias: th.Tensor  # (G, 1, 3 D/G), including the update gate's offset of -1


def gru_weights(rssm: RSSM, dtype: th.dtype, n_inputs: int) -> GRUWeights:
    """
    :param rssm: see :func:`supports_fused`
    :param dtype: of matmuls
    :param n_inputs: number of input layers: 2 for deter and stoch, 3 with the action
    :return: weights of the GRU
    """
    gru, size = rssm.core, rssm.size
    own = size.deter // size.blocks
    gates_bias = gru.gates.bias.unflatten(0, (size.blocks, 3, -1))  # (G, 3, D/G)
    offsets = device_constant((0, 0, 1), gates_bias.device)  # reset, candidate, update (3,)
    norms: list[th.Tensor] = [layer.norm.weight for layer in (gru.from_deter, gru.from_stoch, gru.from_action)[:n_inputs]]
    return GRUWeights(
        input_scale=th.stack(norms),
        # Every block reads all inputs with separate weights. Together these are one dense layer.
        inputs=gru.first_block_layer.weight[:, own : own + n_inputs * size.hidden].transpose(0, 1).flatten(1).to(dtype),
        blocks=gru.first_block_layer.weight[:, :own].to(dtype),
        scale=gru.first_block_norm.weight,
        gates=gru.gates.weight.to(dtype),
        gates_bias=(gates_bias - offsets.unsqueeze(-1)).flatten(1).unsqueeze(1),
    )


class ScanWeights(NamedTuple):
    """Weights of the GRU's input layers and of the posterior."""

    deter: th.Tensor  # (D, 2R), to [the GRU's input layer | the posterior's hidden layer]
    deter_bias: th.Tensor  # (R,)
    stoch: th.Tensor  # (S * K, R)
    stoch_bias: th.Tensor  # (R,)
    posterior_scale: th.Tensor  # (R,)
    logits: th.Tensor  # (R, S * K)
    logits_bias: th.Tensor  # (S * K,)


def scan_weights(rssm: RSSM, dtype: th.dtype) -> ScanWeights:
    """
    :param rssm: see :func:`supports_fused`
    :param dtype: of matmuls
    :return: weights of input layers and posterior
    """
    from_deter, from_stoch = rssm.core.from_deter.linear, rssm.core.from_stoch.linear
    posterior, logits = rssm.posterior_net.mlp.first, rssm.posterior_net.logits
    return ScanWeights(
        deter=th.cat([from_deter.weight, posterior.linear.weight[:, : rssm.size.deter]]).t().to(dtype),
        deter_bias=from_deter.bias,
        stoch=from_stoch.weight.t().to(dtype),
        stoch_bias=from_stoch.bias,
        posterior_scale=posterior.norm.weight,
        logits=logits.weight.t().to(dtype),
        logits_bias=logits.bias,
    )


class LayerWeights(NamedTuple):
    """Weights of a hidden layer."""

    weight: th.Tensor  # (I, O)
    bias: th.Tensor  # (O,)
    scale: th.Tensor  # of its norm (O,)


class DreamWeights(NamedTuple):
    """Weights of imagination: the GRU's input layers, the prior and the actor's input layer."""

    deter: th.Tensor  # (D, 2R + U), to [the GRU's input layer | the prior | the actor]
    deter_bias: th.Tensor  # (R,)
    stoch: th.Tensor  # (S * K, R + U), to [the GRU's input layer | the actor]
    stoch_bias: th.Tensor  # (R + U,)
    action: th.Tensor  # (A, R)
    action_bias: th.Tensor  # (R,)
    gru_bias: th.Tensor  # of the hidden layer (D,)
    prior_bias: th.Tensor  # (R,)
    prior_scale: th.Tensor  # (R,)
    prior_rest: tuple[LayerWeights, ...]  # the prior's other hidden layers
    logits: th.Tensor  # (R, S * K)
    logits_bias: th.Tensor  # (S * K,)


def dream_weights(rssm: RSSM, actor: ActorHead, dtype: th.dtype) -> DreamWeights:
    """
    :param rssm: see :func:`supports_fused`
    :param actor: the policy
    :param dtype: of matmuls
    :return: weights of input layers, prior and actor
    """
    gru, deter = rssm.core, rssm.size.deter
    from_deter, from_stoch, from_action = gru.from_deter.linear, gru.from_stoch.linear, gru.from_action.linear
    prior, actor_first = rssm.prior_net.mlp.first, actor.mlp.first.linear
    rest = (
        LayerWeights(layer.linear.weight.t().to(dtype), layer.linear.bias, layer.norm.weight)
        for layer in rssm.prior_net.mlp.rest
    )
    return DreamWeights(
        deter=th.cat([from_deter.weight, prior.linear.weight, actor_first.weight[:, :deter]]).t().to(dtype),
        deter_bias=from_deter.bias,
        stoch=th.cat([from_stoch.weight, actor_first.weight[:, deter:]]).t().to(dtype),
        stoch_bias=th.cat([from_stoch.bias, actor_first.bias]),
        action=from_action.weight.t().to(dtype),
        action_bias=from_action.bias,
        gru_bias=gru.first_block_layer.bias,
        prior_bias=prior.linear.bias,
        prior_scale=prior.norm.weight,
        prior_rest=tuple(rest),
        logits=rssm.prior_net.logits.weight.t().to(dtype),
        logits_bias=rssm.prior_net.logits.bias,
    )
