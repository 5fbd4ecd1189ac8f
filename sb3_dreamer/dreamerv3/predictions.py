"""What the world model predicts, as arrays: reconstructions, open-loop predictions, imagined trajectories and values."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.preprocessing import (
    SINGLE_KEY,
    as_array_dict,
    as_space_dict,
    class_counts,
    decode_actions,
    encode_actions,
)
from sb3_dreamer.common.type_aliases import LatentState, NumpyObs, SequenceBatch, TensorObs
from sb3_dreamer.dreamerv3.networks import MultiDecoder
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.rssm import stack_states


class Latents(NamedTuple):
    """Latent states as arrays: deter (..., D) and stoch, one-hot, (..., S, K)."""

    deter: np.ndarray
    stoch: np.ndarray


class OpenLoop(NamedTuple):
    """
    Open-loop prediction of B sequences of T rows. Row t holds what arrived together with observation t.

    ``observations`` (B, T, \\*space.shape) are those that the model was given, and ``predicted`` its predictions: before row
    ``burn_in`` reconstructions from the posterior, from there on predictions of the prior, which sees the actions only.
    ``latents`` (B, T, ...), ``rewards``, ``continues`` (probability that the episode continues) and ``values`` (of the critic)
    (B, T) are predicted, too. ``true_rewards`` and ``true_continues`` (B, T) are those of the replay buffer; None if the
    sequences were given. ``is_valid`` (B, T) is False from the first row on in which an unobserved episode has started: the
    world model cannot foresee it.
    """

    observations: NumpyObs
    predicted: NumpyObs
    rewards: np.ndarray
    continues: np.ndarray
    values: np.ndarray
    true_rewards: np.ndarray | None
    true_continues: np.ndarray | None
    is_valid: np.ndarray
    latents: Latents
    burn_in: int


class Imagination(NamedTuple):
    """
    Imagined trajectories of H steps from n states: ``observations`` (n, H + 1, \\*space.shape), decoded; ``actions``
    (n, H, \\*action_space.shape), as the environment would get them; ``rewards``, ``continues`` (probability that the episode
    continues) and ``values`` (of the critic) of each state (n, H + 1); ``latents`` (n, H + 1, ...). Row 0 is the start.
    """

    observations: NumpyObs
    actions: np.ndarray
    rewards: np.ndarray
    continues: np.ndarray
    values: np.ndarray
    latents: Latents


class Noise:
    """
    Random numbers that do not change those of training.

    :param policy: policy
    :param deterministic: no random numbers, take modes instead
    :param seed: seed of the generator
    """

    def __init__(self, policy: DreamerPolicy, deterministic: bool, seed: int):
        self.policy = policy
        self.deterministic = deterministic
        self.generator = th.Generator(policy.device).manual_seed(seed)

    def stoch(self, n: int) -> th.Tensor | None:
        """:return: noise for a sample of stoch (n, S), or None for the mode"""
        if self.deterministic:
            return None
        return th.rand(n, self.policy.size.stoch, device=self.policy.device, generator=self.generator)

    def action(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: (n, F)
        :return: the actor's action (n, action_dim)
        """
        distribution = self.policy.actor(features)
        if self.deterministic:
            return distribution.mode()
        return distribution.sample(self.policy.actor.draw_noise(len(features), generator=self.generator))


class Sequences(NamedTuple):
    """B sequences of T rows for :func:`open_loop`, as in a ``SequenceBatch``."""

    observations: TensorObs
    prev_actions: th.Tensor
    is_first: th.Tensor
    initial: LatentState


def open_loop(policy: DreamerPolicy, sequences: Sequences, burn_in: int, noise: Noise) -> LatentState:
    """
    :param policy: policy
    :param sequences: B sequences of T rows
    :param burn_in: number of rows that are observed
    :param noise: noise for posterior and prior
    :return: posterior states, then imagined states (B, T, ...)
    """
    rssm = policy.world_model.rssm
    observations = sequences.observations
    if isinstance(observations, dict):
        embed = policy.world_model.encode({key: value[:, :burn_in] for key, value in observations.items()})  # (B, burn_in, E)
    else:
        embed = policy.world_model.encode(observations[:, :burn_in])  # (B, burn_in, E)
    actions = encode_actions(sequences.prev_actions, policy.action_space)  # (B, T, A)
    state, states = sequences.initial, []
    for t in range(actions.shape[1]):
        draws = noise.stoch(len(actions))  # (B, S)
        if t < burn_in:
            state, _ = rssm.obs_step(state, actions[:, t], embed[:, t], sequences.is_first[:, t], draws)
        else:
            state = rssm.img_step(state, actions[:, t], draws)
        states.append(state)
    return stack_states(states)


def rollout(
    policy: DreamerPolicy, state: LatentState, horizon: int, given: th.Tensor | None, noise: Noise
) -> tuple[LatentState, th.Tensor]:
    """
    :param policy: policy
    :param state: start states (n, ...)
    :param horizon: H
    :param given: actions (n, H, action_dim); None: those of the actor
    :param noise: noise for prior and actor
    :return: states (n, H + 1, ...) and actions (n, H, action_dim)
    """
    rssm = policy.world_model.rssm
    states, actions = [state], []
    for step in range(horizon):
        actions.append(noise.action(rssm.features(state)) if given is None else given[:, step])  # (n, action_dim)
        state = rssm.img_step(state, encode_actions(actions[-1], policy.action_space), noise.stoch(len(state.deter)))
        states.append(state)
    return stack_states(states), th.stack(actions, dim=1)


def decode_states(policy: DreamerPolicy, states: LatentState) -> NumpyObs:
    """
    :param policy: policy
    :param states: (..., D) and (..., S, K)
    :return: modes of the decoder (..., \\*space.shape), by key if the observation space is a Dict
    :raises ValueError: if the model reconstructs no observation
    """
    lead = states.deter.shape[:-1]
    decoder = policy.world_model.decoder
    flat = states.deter.flatten(0, -2), states.stoch.flatten(0, -3)  # (N, D), (N, S, K)
    if isinstance(decoder, MultiDecoder):
        arrays = decoder.observations(*flat)
    else:
        arrays = {key: distribution.mode().float().cpu().numpy() for key, distribution in decoder(*flat).items()}
    arrays = {key: array.reshape(*lead, *array.shape[1:]) for key, array in sorted(arrays.items())}
    if not arrays:
        raise ValueError("The model reconstructs no observation, see `decoder_keys` and `decoder_class` in `policy_kwargs`")
    return arrays if isinstance(policy.observation_space, spaces.Dict) else arrays[SINGLE_KEY]


def to_numpy(value: Any) -> Any:
    """:return: a tensor, a tuple or a dict of tensors as arrays"""
    if isinstance(value, dict):
        return {key: to_numpy(one) for key, one in value.items()}
    if isinstance(value, LatentState):
        return Latents(*(to_numpy(one) for one in value))
    return value.cpu().numpy()


class WorldModelPredictions:
    """
    Functions of :class:`~sb3_dreamer.dreamerv3.dreamerv3.DreamerV3` that show what its world model predicts. They take
    observations as ``predict`` does and return arrays in the layout of ``model.observation_space``: SB3 puts the channels of
    uint8 images first. With ``VecNormalize``, observations and rewards are normalised.

    They change neither the model nor the random numbers of training: ``seed`` seeds their own. Except for
    :meth:`predict_open_loop` without sequences, they need neither an environment nor a replay buffer.
    """

    policy: DreamerPolicy
    replay_buffer: SequenceReplayBuffer
    action_space: spaces.Space
    gamma: float
    _vec_normalize_env: VecNormalize | None
    _had_vec_normalize: bool

    def replayed_sequences(self, n_sequences: int, n_rows: int, seed: int) -> SequenceBatch:
        """
        :param n_sequences: B
        :param n_rows: T
        :param seed: the same seed draws the same sequences
        :return: sequences of the replay buffer (B, T, ...), normalised as for the model
        :raises ValueError: if the replay buffer has no sequence of this length, or as :meth:`check_statistics`
        """
        self.check_statistics()
        generator = np.random.default_rng(seed)
        return self.replay_buffer.sample_sequences(n_sequences, n_rows, generator, self._vec_normalize_env)

    def check_statistics(self) -> None:
        """:raises ValueError: if the model was trained with ``VecNormalize`` and is without it"""
        if self._had_vec_normalize and self._vec_normalize_env is None:
            raise ValueError(
                "The model was trained with VecNormalize, and is without it, so the sequences of the replay buffer cannot be "
                "normalised. Give it the environment first: `model.set_env(VecNormalize.load(path, venv))`"
            )

    @th.no_grad()
    def decode(self, latents: tuple[Any, Any]) -> NumpyObs:
        """
        :param latents: deter (..., D) and stoch, one-hot, (..., S, K), arrays or tensors; at least one leading axis
        :return: predicted observations (..., \\*space.shape) in the dtype of the space, by key if the space is a Dict
        :raises ValueError: if a shape is wrong, or the model reconstructs no observation
        """
        self.policy.set_training_mode(False)
        with self.policy.autocast():
            return decode_states(self.policy, self._states(latents))

    @th.no_grad()
    def value(
        self, observation: NumpyObs, state: tuple[np.ndarray, ...] | None = None, episode_start: np.ndarray | None = None
    ) -> np.ndarray:
        """
        The critic's estimate of the discounted return, at the mode of the posterior. Arguments as for ``predict``.

        :param observation: one observation or (n, ...)
        :param state: as returned by the last call of ``predict``; None starts an episode
        :param episode_start: (n,) whether an episode starts
        :return: (n,), n = 1 for one observation
        """
        self.policy.set_training_mode(False)
        with self.policy.autocast():
            states = self._observe(observation, state, episode_start, None)
            return to_numpy(self.policy.critic(self.policy.world_model.rssm.features(states)).mean())

    def reconstruct(
        self,
        observations: NumpyObs,
        actions: np.ndarray,
        episode_starts: np.ndarray | None = None,
        *,
        deterministic: bool = False,
        seed: int = 0,
    ) -> NumpyObs:
        """
        Reconstruct sequences, every row from its posterior. Arguments as for :meth:`predict_open_loop`.

        :return: (B, T, \\*space.shape), by key if the space is a Dict
        """
        n_rows = self._lead(observations)[1]
        result = self.predict_open_loop(
            observations, actions, episode_starts, burn_in=n_rows, deterministic=deterministic, seed=seed
        )
        return result.predicted

    @th.no_grad()
    def predict_open_loop(
        self,
        observations: NumpyObs | None = None,
        actions: np.ndarray | None = None,
        episode_starts: np.ndarray | None = None,
        *,
        burn_in: int = 5,
        horizon: int = 15,
        n_sequences: int = 6,
        deterministic: bool = False,
        seed: int = 0,
    ) -> OpenLoop:
        """
        Observe the first rows of sequences, and predict the others from the true actions alone.

        :param observations: (B, T, \\*space.shape); None: draw sequences of ``burn_in + horizon`` rows from the replay buffer
        :param actions: (B, T - 1, \\*action_space.shape), the action taken in each row but the last
        :param episode_starts: (B, T) whether an episode starts in a row; None: only in the first
        :param burn_in: number of rows that are observed, from 1 to T
        :param horizon: number of rows that are predicted, may be 0; no effect if ``observations`` are given
        :param n_sequences: B; no effect if ``observations`` are given
        :param deterministic: take modes instead of samples
        :param seed: seed of the drawn sequences and samples
        :return: see :class:`OpenLoop`
        :raises ValueError: if a shape or a value is wrong, or as :meth:`replayed_sequences`
        """
        n_rows = burn_in + horizon if observations is None else self._lead(observations)[1]
        if not 1 <= burn_in <= n_rows:
            raise ValueError(f"`burn_in` must be between 1 and the {n_rows} rows of the sequences, got {burn_in}")
        self.policy.set_training_mode(False)
        truth: tuple[Any, Any] = (None, None)
        if observations is None:
            if actions is not None or episode_starts is not None:
                raise ValueError("`observations` must be given together with `actions` and `episode_starts`, got None")
            if n_sequences < 1 or horizon < 0:
                raise ValueError(f"`n_sequences` must be at least 1 and `horizon` at least 0, got {n_sequences} and {horizon}")
            batch = self.replayed_sequences(n_sequences, n_rows, seed)
            sequences = Sequences(batch.observations, batch.prev_actions, batch.is_first, batch.initial)
            truth = to_numpy(batch.rewards), 1.0 - to_numpy(batch.is_terminal.float())
        else:
            sequences = self._sequences(observations, actions, episode_starts)
        with self.policy.autocast():
            states = open_loop(self.policy, sequences, burn_in, Noise(self.policy, deterministic, seed))
            is_new = to_numpy(sequences.is_first.bool()) & (np.arange(n_rows) >= burn_in)  # (B, T)
            return OpenLoop(
                self._in_space_shape(to_numpy(sequences.observations)),
                decode_states(self.policy, states),
                *self._predict_heads(states),
                *truth,
                ~np.logical_or.accumulate(is_new, axis=1),
                to_numpy(states),
                burn_in,
            )

    @th.no_grad()
    def imagine(
        self,
        observation: NumpyObs | None = None,
        state: tuple[Any, ...] | None = None,
        episode_start: np.ndarray | None = None,
        *,
        horizon: int = 15,
        actions: np.ndarray | None = None,
        deterministic: bool = False,
        seed: int = 0,
    ) -> Imagination:
        """
        Imagine trajectories with the actor, or with given actions.

        :param observation: one observation or (n, ...), as for ``predict``; None: start from ``state``
        :param state: as returned by ``predict`` before this observation; without observation, the start itself: deter (n, D),
            stoch (n, S, K), further entries are ignored
        :param episode_start: (n,) whether an episode starts with the observation
        :param horizon: H; no effect if ``actions`` are given
        :param actions: (n, H, \\*action_space.shape), as the environment would get them; None: those of the actor
        :param deterministic: take modes instead of samples, for posterior, prior and actor
        :param seed: seed of the samples
        :return: see :class:`Imagination`
        :raises ValueError: if a shape or a value is wrong, or both ``observation`` and ``state`` are None
        """
        self.policy.set_training_mode(False)
        noise = Noise(self.policy, deterministic, seed)
        with self.policy.autocast():
            if observation is not None:
                start = self._observe(observation, state, episode_start, noise)
            elif state is not None:
                start = self._states(state)
            else:
                raise ValueError("`observation` or `state` must be given, got None for both")
            given = None if actions is None else self._buffer_actions(actions, len(start.deter))  # (n, H, action_dim)
            horizon = horizon if given is None else given.shape[1]
            if horizon < 1:
                raise ValueError(f"`horizon` must be at least 1, got {horizon}")
            states, chosen = rollout(self.policy, start, horizon, given, noise)
            flat = decode_actions(chosen.flatten(0, 1).cpu().numpy(), self.action_space)  # (n * H, *space.shape)
            decoded = decode_states(self.policy, states)
            env_actions = flat.reshape(len(chosen), horizon, *flat.shape[1:])
            return Imagination(decoded, env_actions, *self._predict_heads(states), to_numpy(states))

    # ---- conversions ----

    def _predict_heads(self, states: LatentState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: rewards, probabilities that the episode continues, and values of states (..., D), three times (...)"""
        world_model = self.policy.world_model
        features = world_model.rssm.features(states)  # (..., F)
        continues = world_model.continue_head(features).mean() / max(self.gamma, 1e-8)  # the head's target contains gamma
        rewards, values = world_model.reward_head(features).mean(), self.policy.critic(features).mean()
        return to_numpy(rewards), to_numpy(continues.clamp_max(1.0)), to_numpy(values)

    def _states(self, latents: Any) -> LatentState:
        """:return: latents of a user as tensors on the device"""
        if len(latents) < 2:
            raise ValueError(f"Latents must hold deter and stoch, got {len(latents)} array")
        deter, stoch = (th.as_tensor(part, dtype=th.float32, device=self.policy.device) for part in latents[:2])
        dim, *groups = self.policy.size.latent_shape
        if deter.shape[-1:] != (dim,) or stoch.shape != (*deter.shape[:-1], *groups) or deter.dim() < 2:
            raise ValueError(
                f"Latents must be deter (..., {dim}) and stoch (..., {groups[0]}, {groups[1]}) with the same leading axes, "
                f"got shapes {tuple(deter.shape)} and {tuple(stoch.shape)}"
            )
        return LatentState(deter, stoch)

    def _observe(self, observation: NumpyObs, state: Any, episode_start: Any, noise: Noise | None) -> LatentState:
        """:return: posterior of one step (n, ...), its mode if there is no noise"""
        tensors, _ = self.policy.obs_to_tensor(observation)
        n = len(next(iter(tensors.values())) if isinstance(tensors, dict) else tensors)
        before = self.policy._state_to_tensor(state, n)
        starts = self.policy._starts_to_tensor(episode_start, n)
        draws = None if noise is None else noise.stoch(n)  # (n, S)
        # Deterministic, so that the actor draws no random numbers of training. Its action is not used.
        _, after = self.policy.step(tensors, before, starts, deterministic=True, noise=draws)
        return LatentState(after.deter, after.stoch)

    def _buffer_actions(self, actions: Any, n: int) -> th.Tensor:
        """:return: actions (n, L, \\*action_space.shape) as the replay buffer holds them (n, L, action_dim)"""
        array = np.asarray(actions)
        shape = self.action_space.shape or ()
        if array.ndim != 2 + len(shape) or len(array) != n or array.shape[2:] != shape:
            raise ValueError(f"`actions` must have shape {(n, 'steps', *shape)}, got {array.shape}")
        if isinstance(self.action_space, spaces.Box):
            low, high = self.action_space.low, self.action_space.high
        else:
            low, high = np.zeros(shape), np.reshape(class_counts(self.action_space), shape) - 1  # type: ignore[arg-type]
        is_inside = (array >= low - 1e-5 * (high - low)) & (array <= high + 1e-5 * (high - low))
        if not isinstance(self.action_space, spaces.Box):
            is_inside &= array == np.rint(array)
        if not is_inside.all():
            raise ValueError(f"`actions` must lie in {self.action_space}, got {array[~is_inside][0]}")
        if isinstance(self.action_space, spaces.Box):
            array = np.asarray(self.policy.scale_action(array), dtype=np.float32)
        return th.as_tensor(
            np.ascontiguousarray(array.reshape(n, array.shape[1], math.prod(shape))), device=self.policy.device
        )

    @staticmethod
    def _lead(observations: NumpyObs) -> tuple[int, int]:
        """:return: (B, T) of sequences of a user"""
        shapes = [np.shape(array) for array in as_array_dict(observations).values()]
        if any(len(shape) < 2 or shape[:2] != shapes[0][:2] for shape in shapes):
            raise ValueError(f"`observations` must have leading axes (B, T), got shapes {shapes}")
        return shapes[0][0], shapes[0][1]

    def _in_space_shape(self, observations: NumpyObs) -> NumpyObs:
        """:return: observations (B, T, ...) as (B, T, \\*space.shape); SB3 stores a Discrete number with an axis of its own"""
        arrays = as_array_dict(observations)
        spaces_by_key = as_space_dict(self.policy.observation_space)
        arrays = {key: array.reshape(*array.shape[:2], *(spaces_by_key[key].shape or ())) for key, array in arrays.items()}
        return arrays if isinstance(observations, dict) else arrays[SINGLE_KEY]

    def _sequences(self, observations: NumpyObs, actions: Any, episode_starts: Any) -> Sequences:
        """:return: sequences of a user as tensors on the device"""
        lead = self._lead(observations)
        arrays = {key: np.asarray(array) for key, array in as_array_dict(observations).items()}
        if actions is None:
            raise ValueError("`actions` must be given together with `observations`, got None")
        flat = {key: array.reshape(-1, *array.shape[2:]) for key, array in arrays.items()}
        tensors, _ = self.policy.obs_to_tensor(flat if isinstance(observations, dict) else flat[SINGLE_KEY])
        by_time: Any = (
            {key: one.unflatten(0, lead) for key, one in tensors.items()}
            if isinstance(tensors, dict)
            else tensors.unflatten(0, lead)
        )
        taken = self._buffer_actions(actions, lead[0])  # (B, T - 1, action_dim)
        if taken.shape[1] != lead[1] - 1:
            raise ValueError(
                f"`actions` must hold one action between two rows, {lead[1] - 1} per sequence, got {taken.shape[1]}"
            )
        is_first = np.zeros(lead, dtype=bool) if episode_starts is None else np.array(episode_starts, dtype=bool)
        if is_first.shape != lead:
            raise ValueError(f"`episode_starts` must have shape {lead}, got {is_first.shape}")
        is_first[:, 0] = True  # nothing is known before the first row
        prev_actions = th.cat([taken.new_zeros(lead[0], 1, taken.shape[-1]), taken], dim=1)  # (B, T, action_dim)
        initial = self.policy.world_model.rssm.initial(lead[0])
        return Sequences(by_time, prev_actions, th.as_tensor(is_first, device=self.policy.device), initial)
