"""Imagination as one loop over fused weights. Same result as :func:`~sb3_dreamer.dreamerv3.imagination.imagine`."""

from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.torch_layers import compute_dtype
from sb3_dreamer.common.type_aliases import ImaginationNoise, ImaginedTrajectory, LatentState
from sb3_dreamer.dreamerv3.fast.cells import (
    addmm,
    gru_step,
    matmul,
    maybe_compiled,
    norm_silu,
    sample_one_hot,
    sampling_thresholds,
    softmax,
)
from sb3_dreamer.dreamerv3.fast.weights import DreamWeights, GRUWeights, dream_weights, gru_weights
from sb3_dreamer.dreamerv3.heads import ActorHead
from sb3_dreamer.dreamerv3.world_model import WorldModel


class DreamState(NamedTuple):
    """An imagined state and its projections by the layers that read it."""

    deter: th.Tensor  # (N, D)
    stoch: th.Tensor  # (N, S * K)
    from_deter: th.Tensor  # (N, R)
    from_stoch: th.Tensor  # (N, R)
    actor_preact: th.Tensor  # pre-activations of the actor's input layer (N, U)


def project_stoch(stoch: th.Tensor, w: DreamWeights) -> tuple[th.Tensor, ...]:
    """
    :param stoch: (N, S * K)
    :param w: weights
    :return: projections of stoch by the input layers of GRU (N, R) and actor (N, U)
    """
    n_gru = w.deter_bias.shape[0]
    return addmm(w.stoch_bias, stoch, w.stoch).split([n_gru, w.stoch.shape[1] - n_gru], dim=-1)


def project_deter(deter: th.Tensor, w: DreamWeights) -> tuple[th.Tensor, ...]:
    """
    :param deter: (N, D)
    :param w: weights
    :return: projections of deter by the input layers of GRU (N, R), prior (N, R) and actor (N, U), without bias
    """
    n_gru = w.deter_bias.shape[0]
    return matmul(deter, w.deter).split([n_gru, n_gru, w.deter.shape[1] - 2 * n_gru], dim=-1)


def dream_step(state: DreamState, action: th.Tensor, noise: th.Tensor, gru: GRUWeights, w: DreamWeights) -> DreamState:
    """
    :param state: (N, ...)
    :param action: encoded (N, A)
    :param noise: as for :func:`sample_one_hot`
    :param gru: weights of the GRU
    :param w: all other weights
    :return: the next state
    """
    action = (action / action.abs().clamp_min(1.0)).to(state.deter.dtype)  # as in BlockGRU
    from_action = addmm(w.action_bias, action, w.action)  # (N, R)
    inputs = th.stack([state.from_deter + w.deter_bias, state.from_stoch, from_action], dim=1)  # (N, 3, R)
    deter, _, _ = gru_step(state.deter, inputs, w.gru_bias, gru)  # (N, D)
    from_deter, prior, actor_from_deter = project_deter(deter, w)
    x = norm_silu(prior + w.prior_bias, w.prior_scale)  # (N, R)
    for layer in w.prior_rest:
        x = norm_silu(addmm(layer.bias, x, layer.weight), layer.scale)  # (N, R)
    logits = addmm(w.logits_bias, x, w.logits)  # (N, S * K)
    probs = softmax(logits.unflatten(-1, (noise.shape[1], -1)))  # (N, S, K)
    stoch = sample_one_hot(probs, noise).flatten(1)  # (N, S * K)
    from_stoch, actor_from_stoch = project_stoch(stoch, w)
    return DreamState(deter, stoch, from_deter, from_stoch, actor_from_deter + actor_from_stoch)


@th.no_grad()
def imagine_fused(
    world_model: WorldModel, actor: ActorHead, start: LatentState, noise: ImaginationNoise, is_compiled: bool
) -> ImaginedTrajectory:
    """
    Same as :func:`~sb3_dreamer.dreamerv3.imagination.imagine`, with one matmul for all layers that read deter or stoch.

    :param is_compiled: compile the step
    """
    rssm = world_model.rssm
    n, horizon = noise.stoch.shape[:2]
    deter_dim, groups, classes = rssm.size.latent_shape
    dtype = compute_dtype(start.deter)
    gru, w = gru_weights(rssm, dtype, 3), dream_weights(rssm, actor, dtype)
    rest_of_actor = nn.Sequential(*actor.mlp.rest)
    thresholds = sampling_thresholds(noise.stoch, classes, rssm.size.unimix)  # (N, H, S, K)
    features = start.deter.new_empty(n, horizon + 1, rssm.size.features_dim)
    actor_preact = start.deter.new_empty(n, horizon + 1, rssm.size.units)
    stoch = start.stoch.flatten(1)
    from_deter, _, actor_from_deter = project_deter(start.deter, w)
    from_stoch, actor_from_stoch = project_stoch(stoch, w)
    state = DreamState(start.deter, stoch, from_deter, from_stoch, actor_from_deter + actor_from_stoch)
    actions: list[th.Tensor] = []
    step = maybe_compiled(dream_step, is_compiled)
    for t in range(horizon + 1):
        features[:, t, :deter_dim], features[:, t, deter_dim:] = state.deter, state.stoch
        actor_preact[:, t] = state.actor_preact
        hidden = rest_of_actor(actor.mlp.first.activate(state.actor_preact))  # (N, U)
        actions.append(actor.distribution(hidden).sample(noise.actions[:, t]))  # (N, action_dim)
        if t < horizon:
            action = encode_actions(actions[-1], world_model.action_space)  # (N, A)
            state = step(state, action, thresholds[:, t], gru, w)
    latents = LatentState(features[..., :deter_dim], features[..., deter_dim:].unflatten(-1, (groups, classes)))
    return ImaginedTrajectory(features, th.stack(actions, dim=1), latents, actor_preact)
