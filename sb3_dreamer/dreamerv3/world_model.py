"""The world model: encoder, RSSM, decoder, reward and continue heads, and the loss that trains them."""

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import OneHotCategoricalST
from sb3_dreamer.common.preprocessing import encode_actions, encoded_action_dim
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch, TensorObs
from sb3_dreamer.dreamerv3.heads import ContinueHead, TwoHotHead
from sb3_dreamer.dreamerv3.model_sizes import ModelSize
from sb3_dreamer.dreamerv3.networks import MultiDecoder, MultiEncoder
from sb3_dreamer.dreamerv3.rssm import RSSM


def flatten_time(observations: TensorObs) -> TensorObs:
    """
    :param observations: (B, T, ...), possibly by key
    :return: (B * T, ...)
    """
    if isinstance(observations, dict):
        return {key: value.flatten(0, 1) for key, value in observations.items()}
    return observations.flatten(0, 1)


class WorldModel(nn.Module):
    """
    :param observation_space: space of the environment, images channels first
    :param action_space: action space of the environment
    :param size: model dimensions
    :param normalize_images: see :func:`~sb3_dreamer.common.preprocessing.is_image`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        size: ModelSize,
        normalize_images: bool = True,
    ):
        super().__init__()
        self.action_space = action_space
        self.encoder = MultiEncoder(observation_space, size, normalize_images)
        self.rssm = RSSM(self.encoder.features_dim, encoded_action_dim(action_space), size)
        self.decoder = MultiDecoder(observation_space, size, normalize_images)
        self.reward_head = TwoHotHead(size, size.reward_layers)
        self.continue_head = ContinueHead(size)

    def encode(self, observations: TensorObs) -> th.Tensor:
        """
        :param observations: (B, T, ...) per key, in the space's own dtype
        :return: embed (B, T, E)
        """
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        return self.encoder(flatten_time(observations)).unflatten(0, first.shape[:2])

    def observe(self, batch: SequenceBatch, noise: th.Tensor) -> tuple[LatentState, OneHotCategoricalST]:
        """
        :param batch: B windows of T rows
        :param noise: (B, T, S) uniform, or class indices
        :return: posterior states (B, T, ...) and the distribution they were drawn from
        """
        prev_actions = encode_actions(batch.prev_actions, self.action_space)  # (B, T, A)
        return self.rssm.observe(self.encode(batch.observations), prev_actions, batch.is_first, batch.initial, noise)

    def loss(
        self, batch: SequenceBatch, noise: th.Tensor, *, free_nats: float, gamma: float
    ) -> tuple[dict[str, th.Tensor], LatentState, dict[str, th.Tensor]]:
        """
        World model loss (paper, world model learning).

        :param batch: B windows of T rows
        :param noise: (B, T, S) uniform, or class indices
        :param free_nats: see :meth:`RSSM.kl_loss`
        :param gamma: discount, learnt inside the continue head: its target is gamma * (1 - is_terminal)
        :return: losses (B, T) by name, posterior states (B, T, ...), metrics
        """
        states, posterior = self.observe(batch, noise)
        prior = self.rssm.prior(states.deter)  # logits (B, T, S, K)
        features = self.rssm.features(states)  # (B, T, F)
        dynamics, representation = self.rssm.kl_loss(posterior, prior, free_nats)  # (B, T), (B, T)
        losses = {
            "reconstruction": self.reconstruction_loss(states, batch.observations),
            "reward": self.reward_head(features).loss(batch.rewards),
            "continue": self.continue_head(features).loss(gamma * (1.0 - batch.is_terminal.to(features.dtype))),
            "dynamics": dynamics,
            "representation": representation,
        }
        metrics = {
            "world_model/prior_entropy": prior.entropy().sum(-1).mean().detach(),
            "world_model/posterior_entropy": posterior.entropy().sum(-1).mean().detach(),
        }
        return losses, states, metrics

    def reconstruction_losses(self, states: LatentState, observations: TensorObs) -> dict[str, th.Tensor]:
        """
        :param states: (B, T, ...)
        :param observations: (B, T, ...)
        :return: by key, (B, T)
        """
        lead = states.deter.shape[:2]
        distributions = self.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))  # over (B * T, ...)
        targets = self.decoder.targets(flatten_time(observations))
        return {key: dist.loss(targets[key]).unflatten(0, lead) for key, dist in distributions.items()}

    def reconstruction_loss(self, states: LatentState, observations: TensorObs) -> th.Tensor:
        """:return: the sum of :meth:`reconstruction_losses` over keys, (B, T)"""
        return th.stack(list(self.reconstruction_losses(states, observations).values())).sum(0)
