"""The world model: encoder, RSSM, decoder, reward and continue heads, and the loss that trains them."""

import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import OneHotCategoricalST
from sb3_dreamer.common.images import ObservationKeys
from sb3_dreamer.common.preprocessing import as_space_dict, as_tensor_dict, encode_actions, encoded_dim
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch, TensorObs
from sb3_dreamer.dreamerv3.heads import ContinueHead, TwoHotHead
from sb3_dreamer.dreamerv3.model_sizes import ModelSize
from sb3_dreamer.dreamerv3.networks import MultiDecoder, MultiEncoder
from sb3_dreamer.dreamerv3.rssm import RSSM


def flatten_time(observations: TensorObs) -> TensorObs:
    """
    :param observations: (B, T, ...), or a dict of these
    :return: (B * T, ...)
    """
    if isinstance(observations, dict):
        return {key: value.flatten(0, 1) for key, value in observations.items()}
    return observations.flatten(0, 1)


def find_class(argument: str, value: type[nn.Module] | str) -> type[nn.Module]:
    """
    :param argument: its name, for the error
    :param value: a class, or its name with its module (``"package.module.Class"``), as a YAML file or a checkpoint can hold it
    :return: the class
    :raises ValueError: if there is no such class, or it is no ``nn.Module``: a name from a file must not call anything else
    """
    if not isinstance(value, str):
        return value
    try:
        found = pkgutil.resolve_name(value)
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ValueError("it is no subclass of torch.nn.Module")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`{argument}` must be a class, or 'package.module.Class', got {value!r}: {error}") from error
    return found


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Context in evaluation mode. Afterwards each submodule is in its previous mode again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@th.no_grad()
def check_encoder(encoder: nn.Module, observation_space: spaces.Space) -> None:
    """:raises ValueError: if a custom encoder has no ``features_dim``, or returns another shape for two observations"""
    name, width = type(encoder).__name__, getattr(encoder, "features_dim", None)
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"`encoder_class` {name} must have a positive integer `features_dim`, got {width!r}")
    samples = [observation_space.sample() for _ in range(2)]
    if isinstance(observation_space, spaces.Dict):
        batch: TensorObs = {key: th.as_tensor(np.stack([s[key] for s in samples])) for key in observation_space.spaces}
    else:
        batch = th.as_tensor(np.stack(samples))
    with eval_mode(encoder):
        shape = tuple(encoder(batch).shape)
    if shape != (2, width):
        raise ValueError(
            f"`encoder_class` {name} must return (N, features_dim) = (2, {width}) for 2 observations, got {shape}"
        )


@th.no_grad()
def check_decoder(decoder: nn.Module, observation_space: spaces.Space, size: ModelSize) -> list[str]:
    """
    :return: the keys that a custom decoder reconstructs, sorted
    :raises ValueError: if the decoder does not return a dict of distributions over keys of the space, or if a loss has another
        shape than (N,)
    """
    name, keys = type(decoder).__name__, sorted(as_space_dict(observation_space))
    with eval_mode(decoder):
        result = decoder(th.zeros(2, size.deter), th.zeros(2, size.stoch, size.classes))
    if not isinstance(result, dict) or not result or not set(result) <= set(keys):
        got = sorted(result) if isinstance(result, dict) else type(result).__name__
        raise ValueError(f"`decoder_class` {name} must return a dict with keys among {keys}, got {got}")
    for key, distribution in result.items():
        if not hasattr(distribution, "loss") or not hasattr(distribution, "mode"):
            raise ValueError(f"`decoder_class` {name} must return distributions with `loss` and `mode`, `{key}` has not")
        space = as_space_dict(observation_space)[key]
        target = th.as_tensor(np.zeros((2, *(space.shape or ())), space.dtype))
        try:
            shape = tuple(distribution.loss(target).shape)
        except RuntimeError as error:
            raise ValueError(
                f"`decoder_class` {name}: the `loss` of `{key}` fails for observations of shape {tuple(target.shape)}: {error}"
            ) from error
        if shape != (2,):
            raise ValueError(
                f"`decoder_class` {name} must return distributions whose `loss` is one number per observation, that of "
                f"`{key}` has the shape {shape} for 2 observations"
            )
    return sorted(result)


class WorldModel(nn.Module):
    """
    Encoder, RSSM, decoder, reward head and continue head.

    :param observation_space: space of the environment, images channels first
    :param action_space: action space of the environment
    :param size: model dimensions
    :param keys: keys to encode and to reconstruct, and their layouts; None: all keys
    :param encoder_class: custom encoder, called as ``encoder_class(observation_space, **encoder_kwargs)``; a class, or its
        name ``"package.module.Class"``. A module with ``features_dim`` and ``forward(obs) -> (N, features_dim)``, where
        ``obs`` is a tensor (N, ...) or a dict of tensors in the dtype of the space (float64 is stored as float32 in the
        replay buffer)
    :param encoder_kwargs: keyword arguments of the encoder
    :param decoder_class: custom decoder, called as ``decoder_class(observation_space, deter, stoch, classes,
        **decoder_kwargs)``. A module with ``forward(deter (N, D), stoch (N, S, K)) -> {key: distribution}``, where a
        distribution has ``loss(target) -> (N,)`` and ``mode()``. The target is the observation (N, ...) in the dtype of its
        space. If the space is not a Dict, the key is ``"obs"``. Keys that are not returned are not reconstructed.
    :param decoder_kwargs: keyword arguments of the decoder
    :param symlog_inputs: if False, the default encoder and decoder use vectors without symlog
    :raises ValueError: if a custom encoder or decoder returns something else, or there is no class of that name
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        size: ModelSize,
        keys: ObservationKeys | None = None,
        encoder_class: type[nn.Module] | str | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
        decoder_class: type[nn.Module] | str | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        symlog_inputs: bool = True,
    ):
        super().__init__()
        self.action_space = action_space
        self.encoder: nn.Module
        if encoder_class is None:
            self.encoder = MultiEncoder(observation_space, size, keys, symlog_inputs)
        else:
            self.encoder = find_class("encoder_class", encoder_class)(observation_space, **(encoder_kwargs or {}))
            check_encoder(self.encoder, observation_space)
        self.rssm = RSSM(int(self.encoder.features_dim), encoded_dim(action_space), size)  # type: ignore[arg-type]
        self.decoder: nn.Module
        if decoder_class is None:
            self.decoder = MultiDecoder(observation_space, size, keys, symlog_inputs)
            self.decoded_keys = sorted([*self.decoder.vector_keys, *self.decoder.image_keys])
        else:
            make_decoder = find_class("decoder_class", decoder_class)
            self.decoder = make_decoder(observation_space, *size.latent_shape, **(decoder_kwargs or {}))
            self.decoded_keys = check_decoder(self.decoder, observation_space, size)
        self.reward_head = TwoHotHead(size, size.reward_layers)
        self.continue_head = ContinueHead(size)

    def encode(self, observations: TensorObs) -> th.Tensor:
        """
        :param observations: (B, T, ...) per key, in the dtype of the space
        :return: embed (B, T, E)
        """
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        return self.encoder(flatten_time(observations)).unflatten(0, first.shape[:2])

    def observe(self, batch: SequenceBatch, noise: th.Tensor) -> tuple[LatentState, OneHotCategoricalST]:
        """
        :param batch: B windows of T rows
        :param noise: (B, T, S) uniform, or class indices
        :return: posterior states (B, T, ...) and their distribution
        """
        embed = self.encode(batch.observations)  # (B, T, E)
        prev_actions = encode_actions(batch.prev_actions, self.action_space)  # (B, T, A)
        return self.rssm.observe(embed, prev_actions, batch.is_first, batch.initial, noise)

    def loss(
        self,
        batch: SequenceBatch,
        states: LatentState,
        posterior: OneHotCategoricalST,
        *,
        free_nats: float,
        gamma: float,
        key_scales: Mapping[str, float | th.Tensor] | None = None,
    ) -> tuple[dict[str, th.Tensor], dict[str, th.Tensor], dict[str, th.Tensor]]:
        """
        World model loss (paper, world model learning).

        :param batch: B windows of T rows
        :param states: posterior states (B, T, ...), see :meth:`observe`
        :param posterior: their distribution, logits (B, T, S, K)
        :param free_nats: see :meth:`RSSM.kl_loss`
        :param gamma: discount factor, which the continue head learns: its target is gamma * (1 - is_terminal)
        :param key_scales: weights of single keys in the reconstruction loss; the default is 1
        :return: losses by name (B, T), unweighted reconstruction losses by key (B, T), and metrics
        """
        prior = self.rssm.prior(states.deter)  # logits (B, T, S, K)
        features = self.rssm.features(states)  # (B, T, F)
        dynamics, representation = self.rssm.kl_loss(posterior, prior, free_nats)  # (B, T), (B, T)
        by_key = self.reconstruction_losses(states, batch.observations)  # (B, T) each
        scaled = [loss * (key_scales or {}).get(key, 1.0) for key, loss in by_key.items()]
        losses = {
            "reconstruction": th.stack(scaled).sum(0) if scaled else th.zeros_like(dynamics),
            "reward": self.reward_head(features).loss(batch.rewards),
            "continue": self.continue_head(features).loss(gamma * (1.0 - batch.is_terminal.to(features.dtype))),
            "dynamics": dynamics,
            "representation": representation,
        }
        metrics = {
            "world_model/prior_entropy": prior.entropy().sum(-1).mean().detach(),
            "world_model/posterior_entropy": posterior.entropy().sum(-1).mean().detach(),
        }
        if len(by_key) > 1 or key_scales:
            metrics |= {f"world_model/reconstruction_loss/{key}": loss.detach().mean() for key, loss in by_key.items()}
        return losses, by_key, metrics

    def losses_above_floor(
        self, batch: SequenceBatch, losses: dict[str, th.Tensor], by_key: dict[str, th.Tensor], *, gamma: float
    ) -> dict[str, th.Tensor]:
        """
        How far losses are from the least that is possible: 0, or the entropy of their targets.

        :param batch: B windows of T rows
        :param losses: as from :meth:`loss`
        :param by_key: as from :meth:`loss`
        :param gamma: as for :meth:`loss`
        :return: means of ``reward``, ``continue`` and, by key, ``reconstruction/KEY``, scalars
        """
        continues = gamma * (1.0 - batch.is_terminal.to(losses["continue"].dtype))  # (B, T)
        floors = {
            "reward": self.reward_head.target_entropy(batch.rewards),
            "continue": self.continue_head.target_entropy(continues),
        }
        sizes = {name: (losses[name] - floor).mean() for name, floor in floors.items()}
        return sizes | {f"reconstruction/{key}": loss.mean() for key, loss in by_key.items()}

    def reconstruction_losses(self, states: LatentState, observations: TensorObs) -> dict[str, th.Tensor]:
        """
        :param states: (B, T, ...)
        :param observations: (B, T, ...)
        :return: loss of each key (B, T)
        """
        lead = states.deter.shape[:2]
        distributions = self.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))  # over (B * T, ...)
        observations = flatten_time(observations)
        is_custom = not isinstance(self.decoder, MultiDecoder)  # a custom decoder gets the observations as targets
        targets = as_tensor_dict(observations) if is_custom else self.decoder.targets(observations)  # type: ignore[operator]
        return {key: dist.loss(targets[key]).unflatten(0, lead) for key, dist in distributions.items()}
