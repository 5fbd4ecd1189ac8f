"""
Distributions of DreamerV3, with a common protocol: ``mode``, ``sample(noise)``, ``log_prob``, ``entropy``, ``loss(target)``.

Noise is always an argument: ``sample`` maps noise to a sample and draws no random numbers, so tests can be deterministic.
Everything is computed at least in float32, regardless of the precision of the network.
"""

import math
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.functional import compile_safe_cached_property, device_constant, one_hot


def at_least_float32(x: th.Tensor) -> th.Tensor:
    """:return: 16-bit floats as float32, everything else unchanged"""
    return x if x.dtype == th.float64 else x.float()


def symlog(x: th.Tensor) -> th.Tensor:
    """Symmetric logarithm sign(x) ln(1 + |x|) (paper, symlog predictions)."""
    return th.sign(x) * th.log1p(th.abs(x))


def symexp(x: th.Tensor) -> th.Tensor:
    """Inverse of :func:`symlog`: sign(x) (e^|x| - 1)."""
    return th.sign(x) * th.expm1(th.abs(x))


# Bins of the two-hot distribution lie between symexp(-20) and symexp(20).
TWO_HOT_RANGE = 20.0
TWO_HOT_LIMIT = math.expm1(TWO_HOT_RANGE)


def symexp_bins(n_bins: int) -> th.Tensor:
    """
    Bins of the two-hot distribution: symexp of an even grid on [-20, 20]. They are exactly antisymmetric, and the middle is
    exactly 0.

    :param n_bins: number of bins, odd or even
    :return: (n_bins,) float32, increasing
    """
    half = symexp(th.linspace(-TWO_HOT_RANGE, 0.0, (n_bins + 1) // 2))
    mirrored = -half.flip(0)
    return th.cat([half, mirrored[1:] if n_bins % 2 else mirrored])


class Categorical:
    """
    Independent categorical distributions over the last axis.

    :param logits: (..., S, K)
    :param unimix: share of the uniform distribution mixed into the probabilities (paper: 1% for the RSSM)
    :param sizes: number of real classes of each group (S,), if groups are padded to a common K with ``PADDING`` as logits
    """

    PADDING = -1e9

    def __init__(self, logits: th.Tensor, unimix: float = 0.0, sizes: th.Tensor | None = None):
        self.logits = at_least_float32(logits)
        self.unimix = unimix
        self.sizes = sizes

    @compile_safe_cached_property
    def probs(self) -> th.Tensor:
        """Mixed probabilities (..., S, K)."""
        probs = F.softmax(self.logits, dim=-1)
        if self.unimix == 0.0:
            return probs
        if self.sizes is None:
            return (1.0 - self.unimix) * probs + self.unimix / probs.shape[-1]
        is_real = th.arange(probs.shape[-1], device=probs.device) < self.sizes.unsqueeze(-1)  # (S, K)
        return (1.0 - self.unimix) * probs + self.unimix * is_real.to(probs.dtype) / self.sizes.unsqueeze(-1)

    @compile_safe_cached_property
    def log_probs(self) -> th.Tensor:
        """Logarithm of the mixed probabilities (..., S, K)."""
        if self.unimix == 0.0:
            return F.log_softmax(self.logits, dim=-1)
        probs = self.probs
        # Padded classes have probability 0. Their logarithm must stay finite, so that 0 * log 0 = 0 in the entropy.
        return th.log(probs if self.sizes is None else probs.clamp_min(1e-30))

    def mode(self) -> th.Tensor:
        """:return: class indices (..., S)"""
        return self.logits.argmax(-1)

    def sample(self, noise: th.Tensor) -> th.Tensor:
        """
        Inverse CDF sampling.

        :param noise: (..., S) uniform in [0, 1), or class indices (integers), which are returned unchanged
        :return: class indices (..., S)
        """
        if not noise.is_floating_point():
            return noise
        indices = (self.probs.detach().cumsum(-1) <= noise.unsqueeze(-1)).sum(-1)
        # Rounding may leave the cumulative sum just below 1.
        if self.sizes is None:
            return indices.clamp(max=self.logits.shape[-1] - 1)
        return th.minimum(indices, self.sizes - 1)

    def log_prob(self, indices: th.Tensor) -> th.Tensor:
        """
        :param indices: (..., S)
        :return: (..., S)
        """
        return self.log_probs.gather(-1, indices.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> th.Tensor:
        """:return: nats per group (..., S)"""
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: "Categorical") -> th.Tensor:
        """:return: KL(self || other) in nats per group (..., S)"""
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)

    def loss(self, target: th.Tensor) -> th.Tensor:
        """
        Cross-entropy.

        :param target: class indices (..., S)
        :return: (...), summed over groups
        """
        return -self.log_prob(target).sum(-1)


class OneHotCategoricalST(Categorical):
    """One-hot samples with the straight-through gradient of the mixed probabilities (paper, RSSM)."""

    def straight_through(self, indices: th.Tensor) -> th.Tensor:
        """
        :param indices: (..., S)
        :return: one-hot (..., S, K), exactly 0 or 1, with the gradient of the probabilities
        """
        sample = one_hot(indices, self.logits.shape[-1], self.probs.dtype)
        return sample + (self.probs - self.probs.detach())

    def rsample(self, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: see :meth:`sample`
        :return: straight-through one-hot (..., S, K)
        """
        return self.straight_through(self.sample(noise))


class MultiCategorical(Categorical):
    """
    Categorical distributions with different numbers of classes, from one flat vector of logits.

    :param flat_logits: (..., sum(sizes))
    :param sizes: number of classes of each group
    :param unimix: see :class:`Categorical`
    """

    def __init__(self, flat_logits: th.Tensor, sizes: list[int], unimix: float = 0.0):
        if len(set(sizes)) == 1:
            super().__init__(flat_logits.unflatten(-1, (len(sizes), sizes[0])), unimix)
            return
        width = max(sizes)
        padded = [F.pad(part, (0, width - part.shape[-1]), value=self.PADDING) for part in flat_logits.split(sizes, dim=-1)]
        super().__init__(th.stack(padded, dim=-2), unimix, device_constant(tuple(sizes), flat_logits.device))


class SymexpTwoHot:
    """
    Two-hot distribution over symexp-spaced bins (paper, critic learning). Targets are raw values, without symlog.

    :param logits: (..., n_bins)
    :param bins: (n_bins,) from :func:`symexp_bins`
    """

    def __init__(self, logits: th.Tensor, bins: th.Tensor):
        self.logits = at_least_float32(logits)
        self.bins = bins

    @compile_safe_cached_property
    def log_probs(self) -> th.Tensor:
        """Log-probabilities without gradient (..., n_bins)."""
        return F.log_softmax(self.logits.detach(), dim=-1)

    @compile_safe_cached_property
    def probs(self) -> th.Tensor:
        """Probabilities without gradient (..., n_bins)."""
        # If the logits can be trained, the loss needs the logarithms anyway.
        return self.log_probs.exp() if self.logits.requires_grad else F.softmax(self.logits, dim=-1)

    def mean(self) -> th.Tensor:
        """
        :return: (...), without gradient, because predictions are only used as targets
        """
        # Bins are antisymmetric, so the halves are subtracted before they are weighted. With uniform probabilities the mean
        # is then exactly zero at initialisation. A left-to-right sum of values up to 5e8 would leave rounding noise, which
        # the return normaliser would amplify. The middle bin is zero.
        half = self.bins.shape[0] // 2
        odd = self.probs[..., -half:] - self.probs[..., :half].flip(-1)  # (..., half)
        with th.autocast(odd.device.type, enabled=False):  # matmul in float32, not in 16 bits
            return odd @ self.bins[-half:]

    mode = mean

    def two_hot(self, target: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param target: raw values (...)
        :return: indices of the two bins around each target, and their weights, (..., 2) each; NaN has weights of NaN
        """
        target = target.detach().to(self.bins.dtype).contiguous()
        n_bins = self.bins.shape[0]
        upper = th.searchsorted(self.bins, target, right=True)  # number of bins <= target
        around = th.stack([(upper - 1).clamp(0, n_bins - 1), upper.clamp(0, n_bins - 1)], dim=-1)  # (..., 2)
        # NaN is sorted behind the last bin, but is not outside: it must show in the loss.
        is_outside = (around[..., :1] == around[..., 1:]) & ~target.isnan().unsqueeze(-1)  # (..., 1)
        distances = th.where(is_outside, 1.0, (self.bins[around] - target.unsqueeze(-1)).abs())  # (..., 2)
        return around, distances.flip(-1) / distances.sum(-1, keepdim=True)

    def loss(self, *targets: th.Tensor) -> th.Tensor:
        """
        Cross-entropy with two-hot targets. The targets are not materialised, only two logits of each are gathered.

        :param targets: raw values, (...) each
        :return: sum of the losses over the targets (...)
        """
        indices, weights = (th.cat(parts, dim=-1) for parts in zip(*map(self.two_hot, targets), strict=True))
        return CrossEntropy.apply(self.logits, self.log_probs, self.probs, indices, weights)


class CrossEntropy(th.autograd.Function):
    """Cross-entropy with sparse targets, from probabilities that have been computed before."""

    @staticmethod
    def forward(
        ctx: Any, _logits: th.Tensor, log_probs: th.Tensor, probs: th.Tensor, indices: th.Tensor, weights: th.Tensor
    ) -> th.Tensor:
        """
        :param ctx: for the backward pass
        :param _logits: get the gradient (..., n)
        :param log_probs: (..., n)
        :param probs: (..., n)
        :param indices: (..., m)
        :param weights: weights of these classes in the targets (..., m), with sum one for each target
        :return: (...)
        """
        ctx.save_for_backward(probs, indices, weights)
        return -(log_probs.gather(-1, indices) * weights).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None, None, None, None]:
        probs, indices, weights = ctx.saved_tensors
        grad = grad.unsqueeze(-1)  # (..., 1)
        grad_logits = probs * (grad * weights.sum(-1, keepdim=True))  # (..., n)
        return grad_logits.scatter_add_(-1, indices, -grad * weights), None, None, None, None


class BoundedNormal:
    """
    Normal distribution with mean in (-1, 1) and standard deviation in (0.1, 1) (official actor for continuous actions).

    :param raw_mean: (..., A)
    :param raw_std: (..., A)
    """

    def __init__(self, raw_mean: th.Tensor, raw_std: th.Tensor):
        self.mean = th.tanh(at_least_float32(raw_mean))
        self.std = 0.1 + 0.9 * th.sigmoid(at_least_float32(raw_std) + 2.0)

    def mode(self) -> th.Tensor:
        """:return: (..., A)"""
        return self.mean

    def sample(self, noise: th.Tensor) -> th.Tensor:
        """
        :param noise: standard normal (..., A)
        :return: (..., A), not clipped; only the environment's actions are
        """
        return self.mean + self.std * noise

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """:return: log density of the unclipped sample per dimension (..., A), without a squashing correction"""
        return th.distributions.Normal(self.mean, self.std, validate_args=False).log_prob(value)

    def entropy(self) -> th.Tensor:
        """:return: nats per dimension (..., A)"""
        return th.distributions.Normal(self.mean, self.std, validate_args=False).entropy()


class Bernoulli:
    """
    Bernoulli distribution.

    :param logit: (...)
    """

    def __init__(self, logit: th.Tensor):
        self.logit = at_least_float32(logit)

    def mean(self) -> th.Tensor:
        """:return: probability (...)"""
        return th.sigmoid(self.logit)

    def loss(self, target: th.Tensor) -> th.Tensor:
        """
        Cross-entropy with a soft target.

        :param target: probability (...)
        :return: (...)
        """
        return F.binary_cross_entropy_with_logits(self.logit, target.to(self.logit.dtype), reduction="none")


class VectorMSE:
    """
    Prediction of a vector. The loss is the squared error, without a factor 1/2.

    :param prediction: (N, n)
    """

    def __init__(self, prediction: th.Tensor):
        self.prediction = at_least_float32(prediction)

    def mode(self) -> th.Tensor:
        """:return: (N, n)"""
        return self.prediction

    def loss(self, target: th.Tensor) -> th.Tensor:
        """
        :param target: (N, n)
        :return: (N,)
        """
        return (self.prediction - at_least_float32(target)).square().sum(-1)


class SymlogMSE(VectorMSE):
    """
    Prediction of the symlog of a vector. The loss is the squared error, without a factor 1/2.

    :param prediction: (N, n)
    """

    def mode(self) -> th.Tensor:
        """:return: (N, n) in the units of the target"""
        return symexp(self.prediction)

    def loss(self, target: th.Tensor) -> th.Tensor:
        """
        :param target: raw values (N, n)
        :return: (N,)
        """
        return super().loss(symlog(at_least_float32(target)))


class ImageMSE:
    """
    Prediction of pixels in [0, 1]. The loss is the squared error, summed over the image.

    :param mean: (N, C, h, w)
    """

    def __init__(self, mean: th.Tensor):
        self.mean = at_least_float32(mean)

    def mode(self) -> th.Tensor:
        """:return: (N, C, h, w)"""
        return self.mean

    def loss(self, target: th.Tensor) -> th.Tensor:
        """
        :param target: pixels in [0, 1], (N, C, h, w)
        :return: (N,)
        """
        return (self.mean - target).square().sum((-3, -2, -1))
