"""
The parameters as the fused loops read them: inputs times weights, R is the hidden width of the RSSM.

Matrices are in the dtype of the products, all else in that of the state. Every field is a view, slice or copy of stored
parameters, made inside the graph: autograd leads the gradients back to them.
"""

from typing import NamedTuple

import torch as th

from sb3_dreamer.common.functional import device_constant
from sb3_dreamer.dreamerv3.heads import ActorHead
from sb3_dreamer.dreamerv3.rssm import RSSM


def supports_fused(rssm: RSSM, actor: ActorHead) -> bool:
    """:return: whether the fused loops can run this model: our classes, one hidden layer in core and posterior"""
    has_one_layer = rssm.size.dynamics_layers == rssm.size.posterior_layers == 1
    return type(rssm) is RSSM and type(actor) is ActorHead and has_one_layer


class CoreWeights(NamedTuple):
    """Of the recurrent core behind its first layers, for I inputs."""

    input_scale: th.Tensor  # (I, R), norms of the first layers
    inputs: th.Tensor  # (I * R, D), all blocks' weights of the inputs
    blocks: th.Tensor  # (G, D/G, D/G), weights of the blocks' own slices
    scale: th.Tensor  # (D,)
    gates: th.Tensor  # (G, D/G, 3 D/G)
    gates_bias: th.Tensor  # (G, 1, 3 D/G), the update gate's offset of -1 included


def core_weights(rssm: RSSM, dtype: th.dtype, n_inputs: int) -> CoreWeights:
    """
    :param rssm: see :func:`supports_fused`
    :param dtype: of matrix products
    :param n_inputs: 2 for deter and stoch, 3 with the action
    :return: weights of the core
    """
    core, size = rssm.core, rssm.size
    own = size.deter // size.blocks
    gates_bias = core.gates.bias.unflatten(0, (size.blocks, 3, -1))  # (G, 3, D/G)
    offsets = device_constant((0, 0, 1), gates_bias.device)  # reset, candidate, update (3,)
    norms: list[th.Tensor] = [layer.norm.weight for layer in (core.from_deter, core.from_stoch, core.from_action)[:n_inputs]]
    return CoreWeights(
        input_scale=th.stack(norms),
        # Every block reads all inputs through weights of its own: seen from the inputs, one dense layer.
        inputs=core.block.weight[:, own : own + n_inputs * size.hidden].transpose(0, 1).flatten(1).to(dtype),
        blocks=core.block.weight[:, :own].to(dtype),
        scale=core.block_norm.weight,
        gates=core.gates.weight.to(dtype),
        gates_bias=(gates_bias - offsets.unsqueeze(-1)).flatten(1).unsqueeze(1),
    )


class ScanWeights(NamedTuple):
    """Of the first layers and of the posterior."""

    read: th.Tensor  # (D, 2R), deter to [the core's input of the next step | the posterior's hidden layer]
    deter_bias: th.Tensor  # (R,)
    stoch: th.Tensor  # (S * K, R)
    stoch_bias: th.Tensor  # (R,)
    posterior_scale: th.Tensor  # (R,)
    logits: th.Tensor  # (R, S * K)
    logits_bias: th.Tensor  # (S * K,)


def scan_weights(rssm: RSSM, dtype: th.dtype) -> ScanWeights:
    """
    :param rssm: see :func:`supports_fused`
    :param dtype: of matrix products
    :return: weights of first layers and posterior
    """
    from_deter, from_stoch = rssm.core.from_deter.linear, rssm.core.from_stoch.linear
    posterior, logits = rssm.posterior_net.mlp.first, rssm.posterior_net.logits
    return ScanWeights(
        read=th.cat([from_deter.weight, posterior.linear.weight[:, : rssm.size.deter]]).t().to(dtype),
        deter_bias=from_deter.bias,
        stoch=from_stoch.weight.t().to(dtype),
        stoch_bias=from_stoch.bias,
        posterior_scale=posterior.norm.weight,
        logits=logits.weight.t().to(dtype),
        logits_bias=logits.bias,
    )


class LayerWeights(NamedTuple):
    """A hidden layer."""

    weight: th.Tensor  # (I, O)
    bias: th.Tensor  # (O,)
    scale: th.Tensor  # of its norm (O,)


class DreamWeights(NamedTuple):
    """First layers, prior and the actor's first layer; of dreams."""

    read: th.Tensor  # (D, 2R + U), deter to [the core's input of the next step | the prior | the actor]
    deter_bias: th.Tensor  # (R,)
    stoch: th.Tensor  # (S * K, R + U), stoch to [the core's input of the next step | the actor]
    stoch_bias: th.Tensor  # (R + U,)
    action: th.Tensor  # (A, R)
    action_bias: th.Tensor  # (R,)
    core_bias: th.Tensor  # (D,)
    prior_bias: th.Tensor  # (R,)
    prior_scale: th.Tensor  # (R,)
    prior_rest: tuple[LayerWeights, ...]  # the prior's further layers
    logits: th.Tensor  # (R, S * K)
    logits_bias: th.Tensor  # (S * K,)


def dream_weights(rssm: RSSM, actor: ActorHead, dtype: th.dtype) -> DreamWeights:
    """
    :param rssm: see :func:`supports_fused`
    :param actor: the policy
    :param dtype: of matrix products
    :return: weights of first layers, prior and actor
    """
    core, deter = rssm.core, rssm.size.deter
    from_deter, from_stoch, from_action = core.from_deter.linear, core.from_stoch.linear, core.from_action.linear
    prior, actor_first = rssm.prior_net.mlp.first, actor.mlp.first.linear
    rest = (
        LayerWeights(layer.linear.weight.t().to(dtype), layer.linear.bias, layer.norm.weight)
        for layer in rssm.prior_net.mlp.rest
    )
    return DreamWeights(
        read=th.cat([from_deter.weight, prior.linear.weight, actor_first.weight[:, :deter]]).t().to(dtype),
        deter_bias=from_deter.bias,
        stoch=th.cat([from_stoch.weight, actor_first.weight[:, deter:]]).t().to(dtype),
        stoch_bias=th.cat([from_stoch.bias, actor_first.bias]),
        action=from_action.weight.t().to(dtype),
        action_bias=from_action.bias,
        core_bias=core.block.bias,
        prior_bias=prior.linear.bias,
        prior_scale=prior.norm.weight,
        prior_rest=tuple(rest),
        logits=rssm.prior_net.logits.weight.t().to(dtype),
        logits_bias=rssm.prior_net.logits.bias,
    )
