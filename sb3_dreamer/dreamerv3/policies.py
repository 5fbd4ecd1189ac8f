"""Policies: they own all networks and the optimiser, and act with a recurrent state."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_dreamer.common.images import choose_keys, image_layout, warn_if_flattened
from sb3_dreamer.common.loss_weights import HarmonyWeights
from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.common.preprocessing import SINGLE_KEY, decode_actions, encode_actions, encoded_dim
from sb3_dreamer.common.returns import ReturnNormalizer
from sb3_dreamer.common.save_util import explain_newer_numpy
from sb3_dreamer.common.type_aliases import LatentState, NumpyObs, PolicyState
from sb3_dreamer.common.value_checks import ObservationCheck
from sb3_dreamer.dreamerv3.counterparts import refuse_unknown_keys
from sb3_dreamer.dreamerv3.heads import ActorHead, TwoHotHead
from sb3_dreamer.dreamerv3.model_sizes import SIZE_FIELDS, resolve_model_size
from sb3_dreamer.dreamerv3.world_model import WorldModel

SelfDreamerPolicy = TypeVar("SelfDreamerPolicy", bound="DreamerPolicy")

# Prefixes of the parameters of networks for images.
TOWERS = ("world_model.encoder.towers.", "world_model.decoder.towers.")
PRECISIONS = ("auto", "fp32", "bf16")
STATELESS = """`predict` was called again without `state`, so each step counts as the first of an episode. Pass the state on:
    action, state = model.predict(obs, state=state, episode_start=episode_start)  # initially None and True
    obs, reward, episode_start, info = env.step(action)  # VecEnv; in gymnasium: episode_start = terminated or truncated"""


def check_normalization(symlog_inputs: Any, decay: Any, percentiles: Any) -> None:
    """:raises ValueError: if ``symlog_inputs`` is not a bool, or the decay or the percentiles are out of range"""
    if not isinstance(symlog_inputs, bool):
        raise ValueError(f"`symlog_inputs` must be True or False, got {symlog_inputs!r}")
    if not isinstance(decay, Real) or isinstance(decay, bool) or not 0 <= float(decay) < 1:
        raise ValueError(f"`return_normalizer_decay` must be a number of at least 0 and below 1, got {decay!r}")
    is_pair = isinstance(percentiles, Sequence) and len(percentiles) == 2 and all(isinstance(one, Real) for one in percentiles)
    if not is_pair or not 0 <= percentiles[0] < percentiles[1] <= 1:
        raise ValueError(
            f"`return_percentiles` must be two increasing fractions between 0 and 1, as (0.05, 0.95), got {percentiles!r}"
        )


def check_step(actions: np.ndarray, deter: np.ndarray | th.Tensor) -> None:
    """
    Check the result of a step of acting before the environment gets the actions.

    :param actions: output of the actor (n, action_dim)
    :param deter: recurrent state (n, D), on any device
    :raises ValueError: if one of them is NaN or infinite
    """
    state_is_finite = deter.isfinite().all() if isinstance(deter, th.Tensor) else np.isfinite(deter).all()
    for name, is_finite in (("recurrent state", state_is_finite), ("actor's output", np.isfinite(actions).all())):
        if not is_finite:
            raise ValueError(
                f"The {name} is NaN or infinite, so there is no action: the networks hold such values, or values so large "
                "that they overflow. Load an earlier model, and lower `learning_rate` or use `precision='fp32'`"
            )


class DreamerPolicy(BasePolicy):
    """
    World model, actor and critic of DreamerV3. The same class is used for vectors, images and Dicts, because the encoder is
    built from the observation space.

    :param observation_space: space of the environment, images channels first
    :param action_space: Box with finite bounds, Discrete, MultiDiscrete or MultiBinary
    :param lr_schedule: learning rate as a function of the remaining progress
    :param model_size: see :data:`~sb3_dreamer.dreamerv3.model_sizes.MODEL_SIZES`, or ``"auto"``
    :param precision: ``"fp32"``, ``"bf16"`` (autocast for matmuls, parameters stay float32), or ``"auto"``:
        bf16 on a CUDA device that supports it, otherwise fp32
    :param normalize_images: if False, every Box with three axes is an image; it is scaled by its bounds in any case
    :param image_keys: keys to treat as images, regardless of their space (``"obs"`` if the space is not a Dict)
    :param vector_keys: keys to treat as vectors, regardless of their space; if ``image_keys`` is given as well, the model
        only reads the keys of these two lists
    :param decoder_keys: keys to reconstruct; None: those that the model reads
    :param optimizer_class: optimiser of all networks
    :param optimizer_kwargs: keyword arguments of the optimiser, without the learning rate; ``lr_scale``, a dict with any of
        the keys ``world_model``, ``actor``, ``critic``, multiplies the learning rate of these parts
    :param encoder_class: custom encoder, see :class:`~sb3_dreamer.dreamerv3.world_model.WorldModel`
    :param encoder_kwargs: keyword arguments of the encoder
    :param decoder_class: custom decoder, see :class:`~sb3_dreamer.dreamerv3.world_model.WorldModel`
    :param decoder_kwargs: keyword arguments of the decoder
    :param symlog_inputs: encode and reconstruct the symlog of vector observations; if False, the raw values
    :param return_normalizer_decay: decay of the running return percentiles; advantages are divided by their difference
    :param return_percentiles: lower and upper percentile, as fractions
    :param dimensions: values for single fields of :class:`~sb3_dreamer.dreamerv3.model_sizes.ModelSize`
    :raises ValueError: if a size, a precision or an observation space is not supported, or a setting is out of range
    """

    # Number of consecutive calls of ``predict`` without a state.
    _n_stateless, _has_warned = 0, False

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        model_size: str = "auto",
        precision: str = "auto",
        normalize_images: bool = True,
        image_keys: list[str] | None = None,
        vector_keys: list[str] | None = None,
        decoder_keys: list[str] | None = None,
        optimizer_class: type[th.optim.Optimizer] = LaProp,
        optimizer_kwargs: dict[str, Any] | None = None,
        encoder_class: type[nn.Module] | str | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
        decoder_class: type[nn.Module] | str | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        symlog_inputs: bool = True,
        return_normalizer_decay: float = 0.99,
        return_percentiles: tuple[float, float] = (0.05, 0.95),
        **dimensions: Any,
    ):
        super().__init__(
            observation_space,
            action_space,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=isinstance(action_space, spaces.Box),
        )
        self.set_precision(precision)
        refuse_unknown_keys(dimensions, SIZE_FIELDS, DreamerPolicy.__init__)
        self.model_size = model_size
        self.dimensions = dimensions
        self.key_kwargs = dict(image_keys=image_keys, vector_keys=vector_keys, decoder_keys=decoder_keys)
        if decoder_class is not None and decoder_keys is not None:
            raise ValueError("`decoder_keys` has no effect where `decoder_class` is given: it returns what it reconstructs")
        if encoder_class is not None and decoder_class is not None and (image_keys is not None or vector_keys is not None):
            raise ValueError(
                "`image_keys` and `vector_keys` have no effect where `encoder_class` and `decoder_class` are given"
            )
        keys = choose_keys(observation_space, normalize_images, **self.key_kwargs)
        self.size = resolve_model_size(model_size, bool(keys.layouts), **dimensions)
        self.network_kwargs = dict(
            encoder_class=encoder_class,
            encoder_kwargs=encoder_kwargs,
            decoder_class=decoder_class,
            decoder_kwargs=decoder_kwargs,
            symlog_inputs=symlog_inputs,
        )
        check_normalization(symlog_inputs, return_normalizer_decay, return_percentiles)
        if not symlog_inputs and encoder_class is not None and decoder_class is not None:
            raise ValueError("`symlog_inputs=False` has no effect where both `encoder_class` and `decoder_class` are given")
        self.normalizer_kwargs = dict(
            return_normalizer_decay=return_normalizer_decay, return_percentiles=tuple(return_percentiles)
        )
        self.world_model = WorldModel(
            observation_space, action_space, self.size, keys, **self.network_kwargs  # type: ignore[arg-type]
        )
        if encoder_class is None:
            warn_if_flattened(observation_space, keys, vector_keys)
        # Keys that the default networks read as images. Their bounds give the scale.
        ours = set(keys.encoded if encoder_class is None else ()) | set(keys.decoded if decoder_class is None else ())
        self.image_keys = sorted(ours & keys.layouts.keys())
        self.image_layouts = keys.layouts  # of all images, also those of other networks
        self.check_observation = ObservationCheck(observation_space, self.image_keys, takes_floats=True)
        self.actor = ActorHead(action_space, self.size)
        self.critic = TwoHotHead(self.size, self.size.critic_layers)
        self.critic_target = deepcopy(self.critic).requires_grad_(False)
        self.return_normalizer = ReturnNormalizer(return_normalizer_decay, *return_percentiles)
        keys_decoded = [f"reconstruction/{key}" for key in self.world_model.decoded_keys]
        self.loss_weights = HarmonyWeights(["reward", "continue", *keys_decoded])
        self.optimizer = self._make_optimizer(lr_schedule(1), **self.optimizer_kwargs)

    def _make_optimizer(self, lr: float, lr_scale: dict[str, float] | None = None, **kwargs: Any) -> th.optim.Optimizer:
        """Make the optimiser. With ``lr_scale`` each part has its own parameter group, whose learning rate is scaled."""
        if lr_scale is None:
            return self.optimizer_class(self.trainable_parameters(), lr=lr, **kwargs)  # type: ignore[call-arg]
        scales = {"world_model": 1.0, "actor": 1.0, "critic": 1.0, **lr_scale}
        if len(scales) > 3 or not all(isinstance(scale, (int, float)) and scale >= 0 for scale in scales.values()):
            raise ValueError(f"`lr_scale` must give world_model, actor or critic a factor of at least 0, got {lr_scale}")
        groups = [
            dict(params=list(getattr(self, part).parameters()), lr=lr * scale, lr_scale=scale)
            for part, scale in scales.items()
        ]
        return self.optimizer_class(groups, lr=lr, **kwargs)  # type: ignore[call-arg]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """:return: all parameters that the optimiser trains, which are all but those of the critic target"""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """
        Same as in torch, with a short error message instead of a list of all tensors.

        :param state_dict: state of a policy of the same size
        :raises RuntimeError: if the state belongs to a policy of another size or of another algorithm
        """
        mine = self.state_dict()
        if not mine.keys() & state_dict.keys():
            theirs = ", ".join(f"`{name}`" for name in list(state_dict)[:2])
            raise RuntimeError(f"The parameters belong to another algorithm: {theirs}, ... are none of DreamerV3's")
        if self.image_keys and not any(name.startswith(TOWERS) for name in state_dict):
            raise RuntimeError(
                f"The file holds no networks for images, and this version reads {self.image_keys} as images. To read them as "
                "numbers, as the file does: `DreamerV3.load(file, custom_objects=dict(policy_kwargs=dict(vector_keys="
                f"{self.image_keys}, ...)))`, with the other `policy_kwargs` of the model after it"
            )
        for name, parameter in mine.items():
            if name in state_dict and state_dict[name].shape != parameter.shape:
                raise RuntimeError(
                    f"The parameters belong to a model of another size: `{name}` has shape {tuple(state_dict[name].shape)}, "
                    f"that of model_size={self.model_size!r} with {self.dimensions or 'no dimensions'} and "
                    f"{self.network_kwargs} in `policy_kwargs` has {tuple(parameter.shape)}"
                )
        return super().load_state_dict(state_dict, *args, **kwargs)

    @classmethod
    def load(cls: type[SelfDreamerPolicy], path: str, device: th.device | str = "auto") -> SelfDreamerPolicy:
        """Same as in SB3. :raises ImportError: if the file needs a newer numpy than the installed one"""
        with explain_newer_numpy():
            return super().load(path, device)

    def update_target(self, tau: float) -> None:
        """
        Soft update of the critic target.

        :param tau: soft update coefficient
        """
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), tau)

    def set_precision(self, precision: str) -> None:
        """
        :param precision: one of :data:`PRECISIONS`
        :raises ValueError: if it is none of them
        """
        if precision not in PRECISIONS:
            raise ValueError(f"`precision` must be one of {PRECISIONS}, got {precision!r}")
        self.precision = precision

    def autocast(self) -> AbstractContextManager:
        """:return: the autocast context for all networks, which depends on ``precision`` and the device"""
        device_type = self.device.type
        on_cuda = device_type == "cuda"
        enabled = self.precision == "bf16" or (
            self.precision == "auto" and on_cuda and th.cuda.is_bf16_supported(including_emulation=False)
        )
        return th.autocast(device_type, dtype=th.bfloat16, enabled=enabled)

    def initial_state(self, batch_size: int) -> PolicyState:
        """:return: the state before the first step of an episode, zeros (batch_size, ...)"""
        latent = self.world_model.rssm.initial(batch_size)
        return PolicyState(*latent, latent.deter.new_zeros(batch_size, encoded_dim(self.action_space)))

    @th.no_grad()
    def step(
        self,
        observations: PyTorchObs,
        state: PolicyState | None,
        episode_start: th.Tensor | None,
        deterministic: bool = False,
        noise: th.Tensor | None = None,
    ) -> tuple[th.Tensor, PolicyState]:
        """
        One step of acting: update the latent state with the observation, then choose an action.

        :param observations: (n, ...) in the dtype of the space
        :param state: (n, ...) from the last step; None: all environments start an episode
        :param episode_start: (n,) whether an environment starts an episode; None: no environment does
        :param deterministic: take the modes of posterior and actor, and draw no random numbers
        :param noise: (n, S) uniform noise for the posterior; None: draw it, or take the mode if ``deterministic``
        :return: actions (n, action_dim), class indices or values around [-1, 1], and the next state
        """
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        n = first.shape[0]
        if state is None:
            state = self.initial_state(n)
        if episode_start is None:
            episode_start = th.zeros(n, device=self.device)
        if noise is None and not deterministic:
            noise = th.rand(n, self.size.stoch, device=self.device)
        with self.autocast():
            embed = self.world_model.encoder(observations)  # (n, E)
            latent = LatentState(state.deter, state.stoch)
            latent, _ = self.world_model.rssm.obs_step(latent, state.prev_action, embed, episode_start, noise)
            distribution = self.actor(self.world_model.rssm.features(latent))
        actions = distribution.mode() if deterministic else distribution.sample(self.actor.draw_noise(n))
        return actions, PolicyState(latent.deter, latent.stoch, encode_actions(actions, self.action_space))

    def obs_to_tensor(self, observation: NumpyObs) -> tuple[PyTorchObs, bool]:
        """
        Same as in SB3, but all values are checked, as in the replay buffer.

        :param observation: one observation or (n, ...)
        :return: tensors (n, ...) on the device, and whether the observation had a batch axis
        :raises ValueError: if it is a Gym ``(obs, info)`` tuple, or a key, a shape or a value does not belong to the
            observation space
        """
        if isinstance(observation, tuple):
            # Text as in SB3, because users search for it.
            raise ValueError(
                "You have passed a tuple to the predict() function, or to one like it, instead of a Numpy array or a Dict. "
                "You are probably mixing Gym API with SB3 VecEnv API: `obs, info = env.reset()` (Gym) vs "
                "`obs = vec_env.reset()` (SB3 VecEnv)"
            )
        self.check_observation.check_numbers(observation)
        tensors, is_vectorized = super().obs_to_tensor(observation)
        n_rows = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
        self.check_observation(observation, n_rows)
        return tensors, is_vectorized

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Choose actions without a state, as at the first step of an episode. This is what SB3's export recipes call. Within an
        episode, use :meth:`predict`, or :meth:`step` for tensors, because they carry the state.

        :param observation: (n, ...) in the dtype of the space, each the first of an episode
        :param deterministic: use modes instead of samples
        :return: (n, \\*action_space.shape): class indices, or values in [-1, 1] for a Box, see ``unscale_action``
        """
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions, _ = self.step(observation, None, None, deterministic)
        if isinstance(self.action_space, spaces.Box):
            actions = actions.clamp(-1.0, 1.0)
        return actions.reshape(-1, *self.action_space.shape)  # type: ignore[misc]

    def predict(
        self,
        observation: NumpyObs,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions. Pass the returned state to the next call, as with ``RecurrentPPO``.

        :param observation: one observation or (n, ...)
        :param state: (deter (n, D), stoch (n, S, K), prev_action (n, A)) of the last call; None starts an episode
        :param episode_start: (n,) whether an episode starts
        :param deterministic: use modes instead of samples, and draw no random numbers
        :return: actions (n, \\*action_space.shape), or one action for one observation, and the next state
        :raises ValueError: if ``observation`` is a Gym ``(obs, info)`` tuple or not finite, ``state`` or ``episode_start`` has
            the wrong shape or invalid values, or the result is NaN or infinite
        """
        self.set_training_mode(False)
        tensors, is_vectorized = self.obs_to_tensor(observation)
        self._warn_if_stateless(is_stateless=state is None and episode_start is None)
        n = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
        actions, next_state = self.step(
            tensors, self._state_to_tensor(state, n), self._starts_to_tensor(episode_start, n), deterministic
        )
        arrays, new_state = actions.cpu().numpy(), tuple(part.cpu().numpy() for part in next_state)
        check_step(arrays, new_state[0])
        env_actions = decode_actions(arrays, self.action_space)
        if not is_vectorized:
            env_actions = env_actions.squeeze(axis=0)
        return env_actions, new_state

    def _warn_if_stateless(self, is_stateless: bool) -> None:
        """Warn once, at the second consecutive call without a state, because a single call may start an episode."""
        self._n_stateless = self._n_stateless + 1 if is_stateless else 0
        if self._n_stateless == 2 and not self._has_warned:
            self._has_warned = True
            warnings.warn(STATELESS)

    def _state_to_tensor(self, state: tuple[np.ndarray, ...] | None, n: int) -> PolicyState | None:
        if state is None:
            return None
        shapes = [np.shape(part) for part in state]
        deter, *stoch = self.size.latent_shape
        allowed = [(n, deter), (n, *stoch), (n, encoded_dim(self.action_space))]
        if shapes != allowed:
            raise ValueError(
                f"`state` must hold three arrays of {n} rows, one per observation: {allowed}, got shapes {shapes}"
            )
        if not all(np.isfinite(part).all() for part in state):
            raise ValueError("`state` must be finite, got NaN or infinite values")
        return PolicyState(*(th.as_tensor(part, dtype=th.float32, device=self.device) for part in state))

    def _starts_to_tensor(self, episode_start: np.ndarray | None, n: int) -> th.Tensor | None:
        if episode_start is None:
            return None
        starts = np.array(episode_start, dtype=np.float32).reshape(-1)
        if len(starts) != n:
            raise ValueError(f"`episode_start` must have one entry per observation, got {len(starts)} for {n}")
        if not ((starts == 0.0) | (starts == 1.0)).all():
            raise ValueError(f"`episode_start` must hold True or False, got {starts}")
        return th.as_tensor(starts, device=self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            **super()._get_constructor_parameters(),
            lr_schedule=self._dummy_schedule,  # not needed for inference after loading
            model_size=self.model_size,
            precision=self.precision,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            **self.key_kwargs,
            **self.network_kwargs,
            **self.normalizer_kwargs,
            **self.dimensions,
        )


class CnnPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` that requires an image, as the policy of this name in SB3 does."""

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        is_named = SINGLE_KEY in (kwargs.get("image_keys") or ())
        if not is_named and image_layout(observation_space, kwargs.get("normalize_images", True)) is None:
            shape = observation_space.shape or ()
            what = "a channel axis is missing: add it, for instance by gymnasium.wrappers.ReshapeObservation(env, "
            way_out = f"{what}{(*shape, 1)}), or " if len(shape) == 2 else ""
            raise AssertionError(
                f"You should use `CnnPolicy` only with images, got {observation_space}: {way_out}use `MlpPolicy`, or say "
                f"`policy_kwargs=dict(image_keys=[{SINGLE_KEY!r}])` if it is an image of two or three axes with finite bounds"
            )
        super().__init__(observation_space, *args, **kwargs)


MlpPolicy = DreamerPolicy
MultiInputPolicy = DreamerPolicy
