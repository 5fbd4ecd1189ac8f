"""
Structured values that are passed between modules.

Legend of shape letters, used in every file: **B** batch, **T** time, **H** imagination horizon, **N** = B*T dream
starts (or any flattened batch), **A** encoded action, **E** embed, **D** deter, **S** stoch groups, **K** classes,
**F** = D + S*K features, **G** blocks, **U** hidden units, **R** hidden units of the RSSM, **I** inputs and **O** outputs of
a layer, **L** length of a sequence, **M** metrics, **C, h, w** image. Batch first, time second, channels first.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
import torch as th

TensorObs: TypeAlias = th.Tensor | dict[str, th.Tensor]
NumpyObs: TypeAlias = np.ndarray | dict[str, np.ndarray]


class LatentState(NamedTuple):
    """State of the RSSM: deter (..., D) and stoch, one-hot, (..., S, K)."""

    deter: th.Tensor
    stoch: th.Tensor


class PolicyState(NamedTuple):
    """What acting carries from step to step: the latent (n_envs, ...) and the encoded action taken from it (n_envs, A)."""

    deter: th.Tensor
    stoch: th.Tensor
    prev_action: th.Tensor


class SequenceIndices(NamedTuple):
    """
    Where sampled rows live: ``steps`` (B, T), the running number of each row in its environment's stream, and
    ``envs`` (B,). Running numbers never repeat, so a row that was overwritten meanwhile is recognised.
    """

    steps: np.ndarray
    envs: np.ndarray


class SequenceBatch(NamedTuple):
    """
    Windows of replay, one row per observation: every field at index t came *with* the observation at t.

    ``observations`` (B, T, ...) in the space's own dtype, ``prev_actions`` (B, T, action_dim), ``rewards``,
    ``is_first``, ``is_last``, ``is_terminal`` (B, T); ``initial`` the latent before the first row (B, ...).
    """

    observations: TensorObs
    prev_actions: th.Tensor
    rewards: th.Tensor
    is_first: th.Tensor
    is_last: th.Tensor
    is_terminal: th.Tensor
    initial: LatentState
    indices: SequenceIndices


class ImaginationNoise(NamedTuple):
    """Noise of a dream: ``stoch`` (N, H, S) uniform and ``actions`` (N, H + 1, ...) as the actor's distribution wants it."""

    stoch: th.Tensor
    actions: th.Tensor


class UpdateNoise(NamedTuple):
    """All randomness of one training update: ``posterior`` (B, T, S) uniform and the dream's noise."""

    posterior: th.Tensor
    imagination: ImaginationNoise


class ImaginedTrajectory(NamedTuple):
    """
    A dream of H steps from N starts: features (N, H + 1, F), actions (N, H + 1, action_dim), latents (N, H + 1, ...), and
    the output of the actor's first linear layer (N, H + 1, U), if it was computed on the way.
    """

    features: th.Tensor
    actions: th.Tensor
    latents: LatentState
    actor_preact: th.Tensor | None = None
