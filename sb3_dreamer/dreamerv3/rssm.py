"""
Recurrent state-space model of the authors' code of 2025 (paper, section "World model learning"): a block-diagonal GRU with a
categorical latent.
"""

from typing import cast

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import OneHotCategoricalST, at_least_float32
from sb3_dreamer.common.torch_layers import MLP, BlockLinear, HiddenLayer, Linear, RMSNorm
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.model_sizes import ModelSize


def stack_states(states: list[LatentState]) -> LatentState:
    """:return: states of T steps (N, ...) as one (N, T, ...)"""
    return LatentState(th.stack([s.deter for s in states], dim=1), th.stack([s.stoch for s in states], dim=1))


class BlockGRU(nn.Module):
    """
    Block-diagonal GRU: deter (h in the paper), stoch (z) and action (a) to the next deter.

    :param action_dim: A, width of encoded actions: one-hot for discrete actions, values in [-1, 1] for a Box
    :param size: model dimensions
    """

    def __init__(self, action_dim: int, size: ModelSize):
        super().__init__()
        self.blocks = size.blocks
        self.from_deter = HiddenLayer(size.deter, size.hidden)
        self.from_stoch = HiddenLayer(size.stoch * size.classes, size.hidden)
        self.from_action = HiddenLayer(action_dim, size.hidden)
        layers: list[nn.Module] = []
        width = size.deter + 3 * size.hidden * size.blocks  # each block reads D/G values of deter and all projections
        for _ in range(size.dynamics_layers):
            layers += [BlockLinear(width, size.deter, size.blocks), RMSNorm(size.deter), nn.SiLU()]
            width = size.deter
        self.hidden = nn.Sequential(*layers)
        self.gates = BlockLinear(size.deter, 3 * size.deter, size.blocks)

    @property
    def first_block_layer(self) -> BlockLinear:
        """The first block layer, whose weights the faster implementation in ``fast/`` reads."""
        return cast(BlockLinear, self.hidden[0])

    @property
    def first_block_norm(self) -> RMSNorm:
        """The norm after the first block layer."""
        return cast(RMSNorm, self.hidden[1])

    def forward(self, deter: th.Tensor, stoch: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param deter: previous state (N, D)
        :param stoch: previous state (N, S, K)
        :param action: encoded action taken in the previous state (N, A)
        :return: next deter (N, D)
        """
        # Values beyond [-1, 1] become +-1, so that the model cannot distinguish a sampled action from its clipped version.
        action = (action / action.detach().abs().clamp_min(1.0)).to(deter.dtype)  # (N, A)
        inputs = th.cat([self.from_deter(deter), self.from_stoch(stoch.flatten(-2)), self.from_action(action)], dim=-1)
        # Every block reads its own slice of deter, and the projections of deter, stoch and action (N, 3 * hidden).
        per_block = inputs.unsqueeze(1).expand(-1, self.blocks, -1)  # (N, G, 3 * hidden)
        deter_blocks = deter.to(inputs.dtype).unflatten(-1, (self.blocks, -1))  # (N, G, D/G)
        x = self.hidden(th.cat([deter_blocks, per_block], dim=-1).flatten(1))  # (N, D)
        # The output holds reset, candidate and update of block 1, then those of block 2, and so on.
        gates = self.gates(x).unflatten(-1, (self.blocks, 3, -1))  # (N, G, 3, D/G)
        reset, candidate, update = (gate.flatten(1) for gate in at_least_float32(gates).unbind(2))  # 3 x (N, D)
        candidate = th.tanh(th.sigmoid(reset) * candidate)  # (N, D)
        update = th.sigmoid(update - 1.0)  # (N, D); -1: a new GRU keeps most of its state
        return update * candidate + (1.0 - update) * deter  # (N, D)


class LatentNet(nn.Sequential):
    """
    Hidden layers and a linear layer for the logits of a latent, (..., in_features) -> (..., n_logits).

    :param in_features: width of the input
    :param units: width of the hidden layers
    :param n_layers: number of hidden layers
    :param n_logits: S * K
    """

    def __init__(self, in_features: int, units: int, n_layers: int, n_logits: int):
        super().__init__(MLP(in_features, units, n_layers), Linear(units, n_logits))

    @property
    def mlp(self) -> MLP:
        """The hidden layers."""
        return cast(MLP, self[0])

    @property
    def logits(self) -> Linear:
        """The output layer."""
        return cast(Linear, self[1])


class RSSM(nn.Module):
    """
    Recurrent state-space model, the memory of the world model.

    :param embed_dim: E, width of the encoder's output
    :param action_dim: A, width of encoded actions
    :param size: model dimensions
    """

    def __init__(self, embed_dim: int, action_dim: int, size: ModelSize):
        super().__init__()
        self.size = size
        self.core = BlockGRU(action_dim, size)
        n_logits = size.stoch * size.classes
        self.prior_net = LatentNet(size.deter, size.hidden, size.prior_layers, n_logits)
        self.posterior_net = LatentNet(size.deter + embed_dim, size.hidden, size.posterior_layers, n_logits)

    def initial(self, batch_size: int) -> LatentState:
        """:return: state before the first step: deter and stoch are zeros (batch_size, ...)"""
        weight = self.core.gates.weight
        return LatentState(
            weight.new_zeros(batch_size, self.size.deter),
            weight.new_zeros(batch_size, self.size.stoch, self.size.classes),
        )

    def prior(self, deter: th.Tensor) -> OneHotCategoricalST:
        """
        :param deter: (..., D)
        :return: p(stoch | deter), logits (..., S, K)
        """
        return self._latent(self.prior_net(deter))

    def posterior(self, deter: th.Tensor, embed: th.Tensor) -> OneHotCategoricalST:
        """
        :param deter: (..., D)
        :param embed: (..., E)
        :return: q(stoch | deter, embed), logits (..., S, K)
        """
        return self._latent(self.posterior_net(th.cat([deter, embed.to(deter.dtype)], dim=-1)))

    def _latent(self, logits: th.Tensor) -> OneHotCategoricalST:
        return OneHotCategoricalST(logits.unflatten(-1, (self.size.stoch, self.size.classes)), self.size.unimix)

    def obs_step(
        self, state: LatentState, prev_action: th.Tensor, embed: th.Tensor, is_first: th.Tensor, noise: th.Tensor | None
    ) -> tuple[LatentState, OneHotCategoricalST]:
        """
        One step with an observation. At the start of an episode, state and previous action are set to zero first.

        :param state: (N, ...)
        :param prev_action: encoded (N, A)
        :param embed: (N, E)
        :param is_first: (N,)
        :param noise: uniform random numbers in [0, 1) (N, S), or class indices to take instead of a sample (for tests);
            None: take the mode of the posterior
        :return: state (N, ...) with straight-through gradient, and its posterior
        """
        keep = 1.0 - is_first.to(state.deter.dtype)  # (N,)
        past = LatentState(state.deter * keep[:, None], state.stoch * keep[:, None, None])  # (N, ...)
        deter = self.core(*past, prev_action * keep[:, None])  # (N, D)
        posterior = self.posterior(deter, embed)  # logits (N, S, K)
        stoch = posterior.straight_through(posterior.mode() if noise is None else posterior.sample(noise))  # (N, S, K)
        return LatentState(deter, stoch), posterior

    def img_step(self, state: LatentState, action: th.Tensor, noise: th.Tensor | None) -> LatentState:
        """
        One step of imagination.

        :param state: (N, ...)
        :param action: encoded (N, A)
        :param noise: uniform in [0, 1) or class indices (N, S); None: take the mode of the prior
        :return: (N, ...)
        """
        deter = self.core(state.deter, state.stoch, action)  # (N, D)
        prior = self.prior(deter)  # logits (N, S, K)
        return LatentState(deter, prior.straight_through(prior.mode() if noise is None else prior.sample(noise)))

    def observe(
        self, embed: th.Tensor, prev_actions: th.Tensor, is_first: th.Tensor, initial: LatentState, noise: th.Tensor
    ) -> tuple[LatentState, OneHotCategoricalST]:
        """
        Compute the posterior states of a sequence.

        .. code-block:: text

            rows                 x_0, a_-1    x_1, a_0    x_2, a_1    observation x_t and the action before it
            states    initial ──▶   s_0   ──▶   s_1   ──▶   s_2       s_t = obs_step(s_{t-1}, a_{t-1}, x_t), s_-1 = initial

        :param embed: (B, T, E)
        :param prev_actions: encoded (B, T, A)
        :param is_first: (B, T)
        :param initial: (B, ...)
        :param noise: uniform in [0, 1) or class indices (B, T, S)
        :return: states (B, T, ...) and their posterior, logits (B, T, S, K)
        """
        state, states, logits = initial, [], []
        for t in range(embed.shape[1]):
            state, posterior = self.obs_step(state, prev_actions[:, t], embed[:, t], is_first[:, t], noise[:, t])
            states.append(state)
            logits.append(posterior.logits)
        return stack_states(states), OneHotCategoricalST(th.stack(logits, dim=1), self.size.unimix)

    @staticmethod
    def features(state: LatentState) -> th.Tensor:
        """
        :param state: (..., D) and (..., S, K)
        :return: deter and flattened stoch, concatenated in this order: the input of all heads (..., F)
        """
        return th.cat([state.deter, state.stoch.flatten(-2)], dim=-1)  # (..., D + S * K)

    @staticmethod
    def kl_loss(posterior: OneHotCategoricalST, prior: OneHotCategoricalST, free_nats: float) -> tuple[th.Tensor, th.Tensor]:
        """
        Dynamics and representation loss (paper, world model loss). The free nats apply to the sum over the S categorical
        variables of stoch.

        :param posterior: logits (B, T, S, K)
        :param prior: logits (B, T, S, K)
        :param free_nats: losses below this number of nats have no gradient
        :return: dynamics loss and representation loss, (B, T) each
        """
        # KL(posterior || prior) with the posterior detached, then with the prior detached. Both reuse the same probabilities.
        log_ratio = posterior.log_probs.detach() - prior.log_probs  # (B, T, S, K)
        dynamics = (posterior.probs.detach() * log_ratio).sum((-2, -1))  # (B, T)
        log_ratio = posterior.log_probs - prior.log_probs.detach()  # (B, T, S, K)
        representation = (posterior.probs * log_ratio).sum((-2, -1))  # (B, T)
        return dynamics.clamp_min(free_nats), representation.clamp_min(free_nats)
