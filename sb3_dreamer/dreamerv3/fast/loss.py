"""The objective with fused loops: the same result as :class:`DreamerLoss`, in less time."""

from typing import Any

import torch as th

from sb3_dreamer.common.distributions import BoundedNormal, MultiCategorical, OneHotCategoricalST
from sb3_dreamer.common.functional import linear_weight_grad, never_compiled
from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.torch_layers import compute_dtype
from sb3_dreamer.common.type_aliases import ImaginationNoise, ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.dreamerv3.fast.dream import imagine_fused
from sb3_dreamer.dreamerv3.fast.scan import observe_fused
from sb3_dreamer.dreamerv3.losses import DreamerLoss

# Number of imagined states that the heads process at a time on a CPU, so that they fit in its cache.
CHUNK_ROWS = 1024


class FusedDreamerLoss(DreamerLoss):
    """
    Fast :class:`DreamerLoss` for models that :func:`~sb3_dreamer.dreamerv3.fast.weights.supports_fused`.
    """

    is_compiled = False  # whether the loops run compiled steps

    def observe(self, batch: SequenceBatch, noise: th.Tensor) -> tuple[LatentState, OneHotCategoricalST]:
        """Same as :meth:`DreamerLoss.observe`."""
        return self._scan(batch, self.policy.world_model.encode(batch.observations), noise)

    @never_compiled  # the loop compiles its own step
    def _scan(self, batch: SequenceBatch, embed: th.Tensor, noise: th.Tensor) -> tuple[LatentState, OneHotCategoricalST]:
        prev_actions = encode_actions(batch.prev_actions, self.policy.action_space)  # (B, T, A)
        rssm = self.policy.world_model.rssm
        return observe_fused(rssm, embed, prev_actions, batch.is_first, batch.initial, noise, self.is_compiled)

    @never_compiled  # the loop compiles its own step
    def imagine(self, start: LatentState, noise: ImaginationNoise) -> ImaginedTrajectory:
        """Same as :meth:`DreamerLoss.imagine`."""
        return imagine_fused(self.policy.world_model, self.policy.actor, start, noise, self.is_compiled)

    def actor_distribution(self, trajectory: ImaginedTrajectory) -> BoundedNormal | MultiCategorical:
        """Same as :meth:`DreamerLoss.actor_distribution`, with the input layer's matmul reused from imagination."""
        assert trajectory.actor_preact is not None
        mlp = self.policy.actor.mlp
        linear = mlp.first.linear
        preact = PrecomputedLinear.apply(trajectory.actor_preact, trajectory.features, linear.weight, linear.bias)
        x = mlp.first.activate(preact)  # (N, H + 1, U)
        for layer in mlp.rest:
            x = layer(x)  # (N, H + 1, U)
        return self.policy.actor.distribution(x)

    def predict(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Same as :meth:`DreamerLoss.predict`, in chunks on a CPU."""
        if features.is_cuda:
            return super().predict(features)
        chunks = [
            super(FusedDreamerLoss, self).predict(chunk) for chunk in features.split(max(1, CHUNK_ROWS // features.shape[1]))
        ]
        rewards, continues, target_values = (th.cat(parts) for parts in zip(*chunks, strict=True))  # 3 x (N, H + 1)
        return rewards, continues, target_values


class PrecomputedLinear(th.autograd.Function):
    """A linear layer whose output is given: forward returns it, backward is that of the layer."""

    @staticmethod
    def forward(ctx: Any, result: th.Tensor, x: th.Tensor, _weight: th.Tensor, _bias: th.Tensor) -> th.Tensor:
        """
        :param ctx: for the backward pass
        :param result: output of the layer for ``x`` (..., O)
        :param x: input of the layer, gets no gradient (..., I)
        :param _weight: (O, I)
        :param _bias: (O,)
        :return: the result (..., O)
        """
        ctx.save_for_backward(x)
        ctx.dtype = compute_dtype(x)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[None, None, th.Tensor, th.Tensor]:
        (x,) = ctx.saved_tensors
        grad = grad.flatten(0, -2)  # (N, O)
        weight = linear_weight_grad(x.flatten(0, -2).to(ctx.dtype), grad.to(ctx.dtype))  # (O, I)
        return None, None, weight.to(grad.dtype), grad.sum(0)
