"""Heads: they map features of a latent state to a distribution."""

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import Bernoulli, BoundedNormal, MultiCategorical, SymexpTwoHot, symexp_bins
from sb3_dreamer.common.preprocessing import class_counts, encoded_dim
from sb3_dreamer.common.torch_layers import MLP, Linear
from sb3_dreamer.dreamerv3.model_sizes import ModelSize


class TwoHotHead(nn.Module):
    """
    Two-hot distribution over a scalar, for reward and critic. It predicts exactly 0 at initialisation.

    :param size: model dimensions
    :param n_layers: number of hidden layers
    """

    bins: th.Tensor

    def __init__(self, size: ModelSize, n_layers: int):
        super().__init__()
        self.mlp = MLP(size.features_dim, size.units, n_layers)
        self.output = Linear(size.units, size.bins, outscale=0.0)
        self.register_buffer("bins", symexp_bins(size.bins), persistent=False)

    def forward(self, features: th.Tensor) -> SymexpTwoHot:
        """
        :param features: (..., F)
        :return: distribution over (...)
        """
        return SymexpTwoHot(self.output(self.mlp(features)), self.bins)  # logits (..., bins)

    def target_entropy(self, target: th.Tensor) -> th.Tensor:
        """
        :param target: raw values (...)
        :return: entropy of the two-hot targets in nats (...), the least loss that is possible
        """
        _, weights = SymexpTwoHot(target, self.bins).two_hot(target)  # (..., 2)
        return th.special.entr(weights).sum(-1)


class ContinueHead(nn.Module):
    """
    Probability that the episode continues, times the discount factor, which is part of the training target.

    :param size: model dimensions
    """

    def __init__(self, size: ModelSize):
        super().__init__()
        self.mlp = MLP(size.features_dim, size.units, size.continue_layers)
        self.output = Linear(size.units, 1)

    def forward(self, features: th.Tensor) -> Bernoulli:
        """
        :param features: (..., F)
        :return: distribution over (...)
        """
        return Bernoulli(self.output(self.mlp(features)).squeeze(-1))  # logit (...)

    @staticmethod
    def target_entropy(target: th.Tensor) -> th.Tensor:
        """
        :param target: probability (...)
        :return: its entropy in nats (...), the least loss that is possible
        """
        return th.special.entr(target) + th.special.entr(1.0 - target)


class ActorHead(nn.Module):
    """
    Actor: bounded normal distributions for a Box, categorical distributions for all discrete spaces.

    :param action_space: action space of the environment
    :param size: model dimensions
    """

    def __init__(self, action_space: spaces.Space, size: ModelSize):
        super().__init__()
        self.sizes = class_counts(action_space)
        self.unimix = size.actor_unimix
        width = encoded_dim(action_space)
        self.noise_dim = width if self.sizes is None else len(self.sizes)
        self.mlp = MLP(size.features_dim, size.units, size.actor_layers)
        # Discrete: logits. Box: mean, with a second layer for the standard deviation.
        self.output = Linear(size.units, width, outscale=0.01)
        self.output_std = Linear(size.units, width, outscale=0.01) if self.sizes is None else None

    def forward(self, features: th.Tensor) -> BoundedNormal | MultiCategorical:
        """
        :param features: (..., F)
        :return: distribution over actions (..., action_dim); log-probability and entropy are per dimension
        """
        return self.distribution(self.mlp(features))

    def distribution(self, x: th.Tensor) -> BoundedNormal | MultiCategorical:
        """
        :param x: output of the hidden layers (..., U)
        :return: see :meth:`forward`
        """
        if self.sizes is None:
            assert self.output_std is not None
            return BoundedNormal(self.output(x), self.output_std(x))
        return MultiCategorical(self.output(x), self.sizes, self.unimix)

    def draw_noise(self, *shape: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        :param shape: leading axes
        :param generator: draws the numbers; None: the generator of the device
        :return: noise for ``sample`` of the distribution, (\\*shape, action_dim)
        """
        draw = th.randn if self.sizes is None else th.rand
        return draw(*shape, self.noise_dim, device=self.output.weight.device, generator=generator)
