"""Weights of losses that follow from the losses themselves."""

from typing import Any

import torch as th
from torch import nn


class HarmonyWeights(nn.Module):
    """
    A weight for each loss from its own running mean, so that small losses are not neglected (after HarmonyDream, Ma et al.,
    ICML 2024, https://arxiv.org/abs/2310.00344, rectified form).

    .. code-block:: text

        minimise over sigma    L / sigma + log(1 + sigma)
        weight                 1 / sigma = 2 / (L + sqrt(L^2 + 4 L))

    L is the loss above its floor: the entropy of soft targets, which is the least loss possible. The authors learn sigma by
    gradient. Here it is computed from the running mean, which needs no learning rate.

    If the largest loss, such as that of an image, gets a weight below 1, all weights are divided by it. The ratios stay the
    same, and no loss has less than the weight of the paper: with weight 1 / L an image is worth less than the KL that
    encoding it costs, and the posterior ignores it. Weights above ``largest`` are cut.

    Reward and continue never weigh less than an observation. A reward that cannot be predicted yet has a large loss, so by the
    formula a small weight, although it is what matters. The gradient of the observations would hide it, and it would stay
    unpredictable.

    :param names: names of the losses; those of observations start with ``reconstruction``
    :param decay: decay of the running means, which are corrected for their start at zero
    :param largest: largest weight
    """

    means: th.Tensor
    n_updates: th.Tensor
    is_observation: th.Tensor

    def __init__(self, names: list[str], decay: float = 0.99, largest: float = 100.0):
        super().__init__()
        self.names = names
        self.decay = decay
        self.largest = largest
        self.register_buffer("means", th.zeros(len(names)))
        self.register_buffer("n_updates", th.zeros(()))
        is_observation = th.tensor([name.startswith("reconstruction") for name in names])
        self.register_buffer("is_observation", is_observation, persistent=False)
        self.register_load_state_dict_pre_hook(start_without_means)

    @th.no_grad()
    def forward(self) -> dict[str, th.Tensor]:
        """:return: weight of each loss, scalars; all 1 before the first update"""
        means = self.means / (1.0 - self.decay**self.n_updates).clamp_min(1e-8)  # (M,)
        means = means.clamp_min(0.0)
        weights = 2.0 / (means + (means.square() + 4.0 * means).sqrt())  # (M,)
        weights = (weights / weights.amin().clamp(max=1.0)).clamp(max=self.largest)  # (M,), at least 1
        least = th.where(self.is_observation, weights, 0.0).amax()
        weights = th.where(self.is_observation, weights, weights.maximum(least))  # (M,)
        weights = th.where(self.n_updates == 0, 1.0, weights)
        return dict(zip(self.names, weights.unbind(), strict=True))

    @th.no_grad()
    def update(self, sizes: th.Tensor) -> None:
        """
        :param sizes: mean of each loss above its floor, in the order of ``names`` (M,)
        """
        self.means.lerp_(sizes.detach().to(self.means.dtype), 1.0 - self.decay)
        self.n_updates.add_(1.0)


def start_without_means(weights: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """
    Before a file is loaded: those of versions without these weights have no means.

    :param weights: loads
    :param state_dict: gets what is missing
    :param prefix: of the names
    """
    for name in ("means", "n_updates"):
        state_dict.setdefault(prefix + name, th.zeros_like(getattr(weights, name)))
