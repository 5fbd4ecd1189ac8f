"""Imagination as one loop over fused weights: the same numbers as :func:`~sb3_dreamer.dreamerv3.imagination.imagine`."""

from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.torch_layers import compute_dtype
from sb3_dreamer.common.type_aliases import ImaginationNoise, ImaginedTrajectory, LatentState
from sb3_dreamer.dreamerv3.fast.cells import (
    affine,
    core_step,
    maybe_compiled,
    norm_silu,
    product,
    sample_one_hot,
    sampling_thresholds,
    softmax,
)
from sb3_dreamer.dreamerv3.fast.weights import CoreWeights, DreamWeights, core_weights, dream_weights
from sb3_dreamer.dreamerv3.heads import ActorHead
from sb3_dreamer.dreamerv3.world_model import WorldModel


class DreamState(NamedTuple):
    """An imagined state, and what the next layers make of it (N, ...)."""

    deter: th.Tensor  # (N, D)
    stoch: th.Tensor  # (N, S * K)
    from_deter: th.Tensor  # (N, R)
    from_stoch: th.Tensor  # (N, R)
    actor_preact: th.Tensor  # pre-activations of the actor's first layer (N, U)


def read_stoch(stoch: th.Tensor, w: DreamWeights) -> tuple[th.Tensor, ...]:
    """:return: what core (N, R) and actor (N, U) read of stoch (N, S * K)"""
    n_core = w.deter_bias.shape[0]
    return affine(stoch, w.stoch, w.stoch_bias).split([n_core, w.stoch.shape[1] - n_core], dim=-1)


def read_deter(deter: th.Tensor, w: DreamWeights) -> tuple[th.Tensor, ...]:
    """:return: what core (N, R), prior (N, R) and actor (N, U) read of deter (N, D)"""
    n_core = w.deter_bias.shape[0]
    return product(deter, w.read).split([n_core, n_core, w.read.shape[1] - 2 * n_core], dim=-1)


def dream_step(state: DreamState, action: th.Tensor, noise: th.Tensor, core: CoreWeights, w: DreamWeights) -> DreamState:
    """
    :param state: (N, ...)
    :param action: encoded (N, A)
    :param noise: as for :func:`sample_one_hot`
    :param core: weights of the core
    :param w: all other weights
    :return: the next state
    """
    action = (action / action.abs().clamp_min(1.0)).to(state.deter.dtype)  # as in BlockGRU
    from_action = affine(action, w.action, w.action_bias)  # (N, R)
    inputs = th.stack([state.from_deter + w.deter_bias, state.from_stoch, from_action], dim=1)  # (N, 3, R)
    deter, _, _ = core_step(state.deter, inputs, w.core_bias, core)  # (N, D)
    from_deter, prior, actor_preact = read_deter(deter, w)
    x = norm_silu(prior + w.prior_bias, w.prior_scale)  # (N, R)
    for layer in w.prior_rest:
        x = norm_silu(affine(x, layer.weight, layer.bias), layer.scale)  # (N, R)
    logits = affine(x, w.logits, w.logits_bias)  # (N, S * K)
    probs = softmax(logits.unflatten(-1, (noise.shape[1], -1)))  # (N, S, K)
    stoch = sample_one_hot(probs, noise).flatten(1)  # (N, S * K)
    from_stoch, actor_too = read_stoch(stoch, w)
    return DreamState(deter, stoch, from_deter, from_stoch, actor_preact + actor_too)


@th.no_grad()
def imagine_fused(
    world_model: WorldModel, actor: ActorHead, start: LatentState, noise: ImaginationNoise, is_compiled: bool
) -> ImaginedTrajectory:
    """
    As :func:`~sb3_dreamer.dreamerv3.imagination.imagine`, with one matmul for everything that reads a state.

    :param is_compiled: compile the step
    """
    rssm = world_model.rssm
    n, horizon = noise.stoch.shape[:2]
    deter_dim, groups, classes = rssm.size.latent_shape
    dtype = compute_dtype(start.deter)
    core, w = core_weights(rssm, dtype, 3), dream_weights(rssm, actor, dtype)
    rest_of_actor = nn.Sequential(*actor.mlp.rest)
    thresholds = sampling_thresholds(noise.stoch, classes, rssm.size.unimix)  # (N, H, S, K)
    features = start.deter.new_empty(n, horizon + 1, rssm.size.features_dim)
    actor_preact = start.deter.new_empty(n, horizon + 1, rssm.size.units)
    stoch = start.stoch.flatten(1)
    (from_deter, _, for_actor), (from_stoch, for_actor_too) = read_deter(start.deter, w), read_stoch(stoch, w)
    state = DreamState(start.deter, stoch, from_deter, from_stoch, for_actor + for_actor_too)
    actions: list[th.Tensor] = []
    step = maybe_compiled(dream_step, is_compiled)
    for k in range(horizon + 1):
        features[:, k, :deter_dim], features[:, k, deter_dim:] = state.deter, state.stoch
        actor_preact[:, k] = state.actor_preact
        hidden = rest_of_actor(actor.mlp.first.activate(state.actor_preact))  # (N, U)
        actions.append(actor.distribution(hidden).sample(noise.actions[:, k]))  # (N, action_dim)
        if k < horizon:
            action = encode_actions(actions[-1], world_model.action_space)  # (N, A)
            state = step(state, action, thresholds[:, k], core, w)
    latents = LatentState(features[..., :deter_dim], features[..., deter_dim:].unflatten(-1, (groups, classes)))
    return ImaginedTrajectory(features, th.stack(actions, dim=1), latents, actor_preact)
