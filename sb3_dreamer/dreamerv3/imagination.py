"""Imagination: rollouts of the actor in the world model."""

import torch as th

from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.type_aliases import ImaginationNoise, ImaginedTrajectory, LatentState
from sb3_dreamer.dreamerv3.heads import ActorHead
from sb3_dreamer.dreamerv3.rssm import stack_states
from sb3_dreamer.dreamerv3.world_model import WorldModel


@th.no_grad()
def imagine(world_model: WorldModel, actor: ActorHead, state: LatentState, noise: ImaginationNoise) -> ImaginedTrajectory:
    """
    Imagine H steps from each start. No gradient is needed, because the actor learns by REINFORCE on the stored features.

    .. code-block:: text

        states     s_0 ──▶ s_1 ──▶ ... ──▶ s_H        s_0 posterior, the rest imagined
        actions    a_0     a_1     ...     a_H        a_t ~ actor(s_t); a_H is not executed

    :param world_model: predicts the next states
    :param actor: chooses the actions
    :param state: N start states
    :param noise: noise of H steps, which also determines the horizon
    :return: the imagined trajectory, (N, H + 1, ...)
    """
    rssm = world_model.rssm
    horizon = noise.stoch.shape[1]
    states, features, actions = [], [], []
    for t in range(horizon + 1):
        states.append(state)
        features.append(rssm.features(state))  # (N, F)
        actions.append(actor(features[-1]).sample(noise.actions[:, t]))  # (N, action_dim)
        if t < horizon:
            action = encode_actions(actions[-1], world_model.action_space)  # (N, A)
            state = rssm.img_step(state, action, noise.stoch[:, t])
    return ImaginedTrajectory(th.stack(features, dim=1), th.stack(actions, dim=1), stack_states(states))
