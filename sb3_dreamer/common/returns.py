"""Lambda returns and their normalisation."""

import torch as th
from torch import nn


def lambda_return(
    rewards: th.Tensor,
    discounts: th.Tensor,
    bootstrap: th.Tensor,
    *,
    return_lambda: float,
    is_last: th.Tensor | None = None,
) -> th.Tensor:
    """
    Lambda return (paper, critic learning), both for imagined and for replayed sequences.

    .. code-block:: text

        rewards    .    r_1    r_2    r_3          received on arrival in the state of the same index
        returns   R_0   R_1    R_2                 R_t = r_{t+1} + d_{t+1} ((1 - l_{t+1}) b_{t+1} + l_{t+1} R_{t+1})
                                                   R_3 = b_3;  l = lambda, but 0 where is_last

    :param rewards: (N, L)
    :param discounts: (N, L), 0 where the episode ended
    :param bootstrap: (N, L), value of each state
    :param return_lambda: lambda
    :param is_last: (N, L), whether the episode ends or is cut at this state, so that returns do not continue beyond it
    :return: (N, L - 1)
    """
    if is_last is None:
        traces = th.full_like(rewards, return_lambda)
    else:
        traces = return_lambda * (1.0 - is_last.to(rewards.dtype))
    steps = rewards + discounts * (1.0 - traces) * bootstrap  # (N, L)
    decays = discounts * traces  # (N, L)
    returns = [bootstrap[:, -1]]
    for t in range(rewards.shape[1] - 1, 0, -1):
        returns.append(steps[:, t] + decays[:, t] * returns[-1])
    return th.stack(returns[:0:-1], dim=1)  # (N, L - 1)


class ReturnNormalizer(nn.Module):
    """
    Running range of the returns between two percentiles (paper, actor learning). It starts at zero, without bias correction.

    :param decay: decay of the running percentiles
    :param low: lower percentile, as a fraction
    :param high: upper percentile, as a fraction
    :param min_scale: lower limit of the range, so that small returns are not scaled up
    """

    low: th.Tensor
    high: th.Tensor
    fractions: th.Tensor

    def __init__(self, decay: float = 0.99, low: float = 0.05, high: float = 0.95, min_scale: float = 1.0):
        super().__init__()
        self.decay = decay
        self.min_scale = min_scale
        self.register_buffer("low", th.zeros(()))
        self.register_buffer("high", th.zeros(()))
        # On the device, so that an update copies nothing from the host. Not saved, because it is a setting.
        self.register_buffer("fractions", th.tensor([low, high]), persistent=False)

    @th.no_grad()
    def update(self, returns: th.Tensor) -> None:
        """
        Update the running percentiles.

        :param returns: returns of any shape
        """
        quantiles = th.quantile(returns.detach().flatten().to(self.low.dtype), self.fractions)
        self.low.lerp_(quantiles[0], 1.0 - self.decay)
        self.high.lerp_(quantiles[1], 1.0 - self.decay)

    @property
    def scale(self) -> th.Tensor:
        """Divisor of the advantages."""
        return (self.high - self.low).clamp_min(self.min_scale)
