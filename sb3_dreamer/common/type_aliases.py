"""
Structured values that are passed between modules.

Legend of shape letters, used in every file: **B** batch, **T** time, **H** imagination horizon, **N** = B*L start states of
imagination (or any flattened batch), **A** encoded action, **E** embed, **D** deter, **S** groups of stoch (or of any
categorical), **K** classes, **F** = D + S*K features, **G** blocks, **U** hidden units, **R** hidden units of the RSSM,
**I** inputs and **O** outputs of a layer, **L** rows per window from which imagination starts (or any other length),
**M** metrics, **C, h, w** image. Batch first, time second, channels first.
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
    """State of acting between steps: latent state (n_envs, ...) and the encoded action chosen in it (n_envs, A)."""

    deter: th.Tensor
    stoch: th.Tensor
    prev_action: th.Tensor


class SequenceIndices(NamedTuple):
    """
    Position of sampled rows: ``steps`` (B, T), the number of each row since the start of its environment's stream, and
    ``envs`` (B,). These numbers are never reused, so rows that have been overwritten since can be detected.
    """

    steps: np.ndarray
    envs: np.ndarray


class SequenceBatch(NamedTuple):
    """
    Windows of the replay buffer, one row per observation. Every field at index t arrived together with the observation at t.

    ``observations`` (B, T, ...) in the dtype of the space, ``prev_actions`` (B, T, action_dim), ``rewards``,
    ``is_first``, ``is_last``, ``is_terminal`` (B, T); ``initial`` is the latent state before the first row (B, ...).
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
    """Noise of imagination: ``stoch`` (N, H, S) uniform, and ``actions`` (N, H + 1, ...) for the actor's distribution."""

    stoch: th.Tensor
    actions: th.Tensor


class UpdateNoise(NamedTuple):
    """All noise of one training update: ``posterior`` (B, T, S) uniform, and the noise of imagination."""

    posterior: th.Tensor
    imagination: ImaginationNoise


class ImaginedTrajectory(NamedTuple):
    """
    Imagined trajectories of H steps from N start states: features (N, H + 1, F), actions (N, H + 1, action_dim), latents
    (N, H + 1, ...), and the output of the actor's first linear layer (N, H + 1, U), if it has been computed.
    """

    features: th.Tensor
    actions: th.Tensor
    latents: LatentState
    actor_preact: th.Tensor | None = None
