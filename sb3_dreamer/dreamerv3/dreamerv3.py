"""DreamerV3 inside Stable-Baselines3's collect/train loop."""

from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TrainFreq
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.distributed.launch import join_ranks
from sb3_dreamer.common.env_checker import check_env
from sb3_dreamer.common.functional import tensors_of
from sb3_dreamer.common.metrics import MetricAverager, UpdateClock
from sb3_dreamer.common.preprocessing import decode_actions, encode_actions
from sb3_dreamer.common.training_ratio import TrainRatio
from sb3_dreamer.common.type_aliases import LatentState, PolicyState
from sb3_dreamer.common.value_checks import RangeCheck
from sb3_dreamer.common.vec_normalize import in_model_layout
from sb3_dreamer.dreamerv3.checks import check_arguments, log_run_setup, rank_invariants, warn_if_no_window
from sb3_dreamer.dreamerv3.counterparts import name_counterparts
from sb3_dreamer.dreamerv3.fast.make_update import Acting, Update, make_acting, make_loss, make_update
from sb3_dreamer.dreamerv3.losses import LossScales
from sb3_dreamer.dreamerv3.policies import CnnPolicy, DreamerPolicy, MlpPolicy, MultiInputPolicy
from sb3_dreamer.dreamerv3.settings import OF_THE_LOSS, AdjustableAlgorithm

SelfDreamerV3 = TypeVar("SelfDreamerV3", bound="DreamerV3")


class DreamerV3(AdjustableAlgorithm):
    """
    DreamerV3: learn a world model from replayed sequences, learn to act inside its dreams.

    Paper: Hafner et al., "Mastering diverse control tasks through world models" (Nature 2025,
    https://arxiv.org/abs/2301.04104), in the form of the authors' 2025 release.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class
    :param env: environment, its id, or None to load a model
    :param learning_rate: a number, a function of the remaining progress (1 to 0), or a list of (environment step, value)
        between which it is linear; times the warm-up, and times ``lr_scale`` in ``optimizer_kwargs`` for single parts
    :param buffer_size: rows (observations) of the replay buffer over all environments
    :param learning_starts: environment steps with random actions before training starts; 0 acts by the policy at once
    :param batch_size: B, windows per update
    :param batch_length: T, rows per window
    :param training_ratio: replayed (trained) time steps per environment step, counted over all environments
    :param model_size: ``"auto"`` (1m without images, 12m with), ``"debug"``, ``"nano"`` ... ``"XL"``, ``"1m"`` ... ``"400m"``
    :param imagination_horizon: H, steps of a dream
    :param gamma: discount, learnt inside the continue head
    :param return_lambda: lambda of the returns
    :param tau: share of the critic that its slow copy takes at each update
    :param ent_coef: weight of the actor's entropy
    :param free_nats: dynamics and representation loss are not reduced below this
    :param loss_scales: weights of the losses by name, see :data:`~sb3_dreamer.dreamerv3.losses.LOSS_SCALES`; unnamed ones
        keep theirs. ``"reconstruction"`` takes a number, or weights by key of the observation.
    :param agc_clip: largest ratio of a tensor's gradient norm to its own norm
    :param lr_warmup_steps: updates until the learning rate is reached; the first update has learning rate 0
    :param replay_context: start windows from the latent state stored with the row before, and refresh it after each update
    :param online_queue: train on each new window once before drawing uniformly
    :param imagine_last: dream from the last K rows of each window only; 0: from all
    :param precision: ``"fp32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 where a CUDA device has it
    :param compile: compile the recurrent steps, on CUDA the whole objective, and capture the update; ``"auto"``: on CUDA
    :param fused: ``"auto"``: fused loops for observing and imagining, the same numbers in less time, where the model allows
        them; False: the step-by-step model
    :param distributed_scaling: what several ranks (torchrun), each with its own batch and environments, do to the learning
        rate: ``"sqrt"``, ``"linear"``, None, ``"sqrt+priming"``, ``"linear+priming"``, see
        :func:`~sb3_dreamer.common.schedules.lr_scaling_factor`
    :param log_every_updates: write the log after so many updates without a line, however long episodes are; ``learn`` with
        ``log_interval=None`` writes none
    :param train_freq: collect so many steps, or ``(n, "episode")``, between training calls
    :param replay_buffer_class: a subclass of :class:`~sb3_dreamer.common.buffers.SequenceReplayBuffer`
    :param replay_buffer_kwargs: keyword arguments of the replay buffer
    :param policy_kwargs: single dimensions (``deter, hidden, stoch, classes, blocks, units, depth, ...``, see
        :class:`~sb3_dreamer.dreamerv3.model_sizes.ModelSize`), ``optimizer_class``, ``optimizer_kwargs``,
        ``normalize_images``, ``symlog_inputs``, ``return_normalizer_decay``, ``return_percentiles``, see
        :class:`~sb3_dreamer.dreamerv3.policies.DreamerPolicy`
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of the TensorBoard log
    :param verbose: 0 silent, 1 info, 2 debug
    :param seed: of all random generators
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    :param _init_setup_model: build the networks now
    :raises ValueError: if an argument is out of its range; TypeError: if there is no such argument
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    replay_buffer: SequenceReplayBuffer
    _update: Update
    _act: Acting

    @name_counterparts
    def __init__(
        self,
        policy: str | type[DreamerPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | list[tuple[float, float]] = 4e-5,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1024,
        batch_size: int = 16,
        batch_length: int = 64,
        training_ratio: float = 512,
        model_size: str = "auto",
        imagination_horizon: int = 15,
        gamma: float = 1 - 1 / 333,
        return_lambda: float = 0.95,
        tau: float = 0.02,
        ent_coef: float = 3e-4,
        free_nats: float = 1.0,
        loss_scales: LossScales | None = None,
        agc_clip: float = 0.3,
        lr_warmup_steps: int = 1000,
        replay_context: bool = True,
        online_queue: bool = True,
        imagine_last: int = 0,
        precision: str = "auto",
        compile: bool | str = "auto",
        fused: bool | str = "auto",
        distributed_scaling: str | None = "sqrt",
        log_every_updates: int = 500,
        train_freq: int | tuple[int, str] = 1,
        replay_buffer_class: type[SequenceReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self._ranks = join_ranks()
        super().__init__(
            policy=policy,
            env=env,  # type: ignore[arg-type]
            learning_rate=learning_rate,  # type: ignore[arg-type]
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=0,  # set after each rollout to the number of updates due
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose if self._ranks.is_main else 0,
            device=self._ranks.device(device),
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.batch_length = batch_length
        self.training_ratio = training_ratio
        self.model_size = model_size
        self.imagination_horizon = imagination_horizon
        self.return_lambda = return_lambda
        self.ent_coef = ent_coef
        self.free_nats = free_nats
        self.loss_scales = loss_scales
        self.agc_clip = agc_clip
        self.lr_warmup_steps = lr_warmup_steps
        self.replay_context = replay_context
        self.online_queue = online_queue
        self.imagine_last = imagine_last
        self.precision = precision
        self.compile = compile
        self.fused = fused
        self.distributed_scaling = distributed_scaling
        self.log_every_updates = log_every_updates
        self._log_interval: int | None = None
        self._has_logged, self._n_updates_before = False, 0  # since the last ``learn`` began
        self._last_state: PolicyState | None = None
        self._train_ratio = TrainRatio()
        self._metrics = MetricAverager()
        self._check_returns = RangeCheck("return")
        self._clock = UpdateClock()
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return OffPolicyAlgorithm._wrap_env(check_env(env), verbose, monitor_wrapper)

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; of several ranks each has a seed of its own."""
        super().set_random_seed(self._ranks.seed(seed))

    def _setup_model(self) -> None:
        check_arguments(self)
        self._settings = {}  # networks and buffer are built now
        self._ranks.silence(self)
        user_policy_kwargs, user_buffer_kwargs = self.policy_kwargs, self.replay_buffer_kwargs
        # SB3 hands these two dicts on; the user's own are restored, for `load` compares them.
        self.policy_kwargs = {"model_size": self.model_size, "precision": self.precision, **user_policy_kwargs}
        self.replay_buffer_kwargs = {
            "batch_length": self.batch_length,
            "replay_context": self.replay_context,
            "online_queue": self.online_queue,
            **user_buffer_kwargs,
        }
        self.replay_buffer_class = self.replay_buffer_class or SequenceReplayBuffer
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.replay_buffer_kwargs = user_policy_kwargs, user_buffer_kwargs
        self.replay_buffer.latent_shape = self.policy.size.latent_shape
        self._setup_training()

    def _setup_update(self) -> None:
        settings = {name: getattr(self, name) for name in OF_THE_LOSS}
        self.loss_module = make_loss(self.policy, self.fused, self.verbose, **settings)
        self._update = make_update(self.loss_module, self.agc_clip, self.tau, self.compile, self.verbose, self._ranks)
        self._act = make_acting(self.policy, self.compile)

    def learn(
        self: SelfDreamerV3,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "DreamerV3",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDreamerV3:
        """As :meth:`OffPolicyAlgorithm.learn`; steps are those of all ranks."""
        self._log_interval = log_interval
        with self._ranks.learning(rank_invariants(self, total_timesteps)):
            callback, progress_bar = self._ranks.callback(callback, progress_bar)
            super().learn(
                total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar  # type: ignore[arg-type]
            )
            self._report_at_end()
            self._write_back.flush()
            self._ranks.merge_statistics(self.get_vec_normalize_env())
            self._ranks.save_follower_buffers(self._ranks.shared_paths(), self.save_replay_buffer)
        return self

    def _report_at_end(self) -> None:
        """Check the losses on every device, write a line if this ``learn`` has written none, warn if it made no update."""
        if self._log_interval is not None and self._metrics.count > 0 and not self._has_logged:
            self.dump_logs()
        self._record_metrics()
        if self._n_updates == self._n_updates_before:
            warn_if_no_window(self)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            self._last_state = None  # SB3 is about to reset the environments
        self._clock = UpdateClock()
        self._vec_normalize_env = in_model_layout(self.get_vec_normalize_env(), self.observation_space)
        self._write_back.flush()
        self._setup_training()
        self._ranks.broadcast([*self.policy.state_dict().values(), *tensors_of(dict(self.policy.optimizer.state))])
        self._ranks.merge_statistics(self.get_vec_normalize_env())
        log_run_setup(self, total_timesteps, reset_num_timesteps)
        steps_before = self.num_timesteps
        self._has_logged, self._n_updates_before = False, self._n_updates
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._make_updates_due(steps_before)
        if reset_num_timesteps:
            self._train_ratio.reset()
        return setup

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """:return: the environment's VecNormalize itself, not what stores its observations"""
        return unwrap_vec_normalize(self.env) if self.env is not None else None

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Act by the policy, or at random before ``learning_starts``; the recurrent state runs along in both cases.

        :param learning_starts: environment steps with random actions
        :param action_noise: not supported, always None
        :param n_envs: number of environments
        :return: actions for the environments, and for the buffer (scaled to [-1, 1] for a Box)
        """
        assert self._last_obs is not None and action_noise is None
        if self._last_state is None:
            # Without a state, what follows is the beginning of an episode to the model, so to the buffer as well.
            self._last_episode_starts = np.ones(n_envs, dtype=bool)
        starts = th.as_tensor(self._last_episode_starts, device=self.device)
        sampled, state = self._act(self.policy.obs_to_tensor(self._last_obs)[0], self._last_state, starts)
        if self.num_timesteps < learning_starts:
            actions = np.array([self.action_space.sample() for _ in range(n_envs)])
            buffer_actions = self.policy.scale_action(actions) if isinstance(self.action_space, spaces.Box) else actions
            flat = th.as_tensor(buffer_actions.reshape(n_envs, -1), device=self.device)
            state = state._replace(prev_action=encode_actions(flat, self.action_space))
        else:
            buffer_actions = sampled.cpu().numpy()
            if isinstance(self.action_space, spaces.Box):
                buffer_actions = buffer_actions.clip(-1.0, 1.0)
            actions = decode_actions(buffer_actions, self.action_space)
        self._last_state = state
        self.num_timesteps += n_envs * (self._ranks.size - 1)  # the other ranks' steps; SB3 adds ours
        return actions, buffer_actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        assert isinstance(replay_buffer, SequenceReplayBuffer)
        assert self._last_state is not None and self._last_episode_starts is not None
        replay_buffer.mark_starts(self._last_episode_starts)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        latent = LatentState(self._last_state.deter.unsqueeze(1), self._last_state.stoch.unsqueeze(1))  # (n_envs, 1, ...)
        replay_buffer.update_latents(replay_buffer.acting_indices, latent)
        self._last_episode_starts = np.array(dones, dtype=bool)
        # Some VecEnvs write the next observation into the array that they returned last.
        self._last_obs = deepcopy(self._last_obs)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        As SB3's, and then set ``gradient_steps`` to the updates due. A stop loses nothing: the transition that SB3 drops
        when a callback returns False is stored, and after an exception the next ``learn`` resets the environments.
        """
        steps_before = self.num_timesteps
        try:
            rollout = super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
            if not rollout.continue_training:
                pending = [callback.locals[name] for name in ("buffer_actions", "new_obs", "rewards", "dones", "infos")]
                self._store_transition(replay_buffer, *pending)
                self._update_info_buffer(callback.locals["infos"], callback.locals["dones"])
        except BaseException:
            self._last_obs = None  # somewhere between two steps: the environments must be reset
            self._set_updates_due(self.num_timesteps - steps_before, self.replay_buffer.can_sample())
            raise
        n_steps = (self.num_timesteps - steps_before) // self._ranks.size
        has_changes = bool(self._changed_settings())
        agreed = self._ranks.sync_rollout(n_steps, rollout.continue_training, self.replay_buffer.can_sample(), has_changes)
        self.num_timesteps = steps_before + agreed.n_steps
        try:
            if agreed.has_changes:
                agreed = self._take_up_together(agreed)
        finally:  # steps count where a setting is refused, too
            self._set_updates_due(agreed.n_steps, agreed.can_sample)
        self._ranks.save_follower_buffers(agreed.buffer_paths, self.save_replay_buffer)
        return rollout._replace(continue_training=agreed.goes_on)

    def _set_updates_due(self, n_steps: int, can_sample: bool) -> None:
        """Set ``gradient_steps`` to the updates due after so many steps of all ranks."""
        can_train = self.num_timesteps > self.learning_starts and can_sample
        self.gradient_steps = self._train_ratio.add_steps(n_steps, can_train)

    def _make_updates_due(self, num_timesteps: int) -> None:
        """Updates that a stop has left undone, with the learning rate of the step at which it happened."""
        can_sample = self._ranks.sync_rollout(0, True, self.replay_buffer.can_sample()).can_sample
        if can_sample and self._train_ratio.owed >= 1:
            now, self.num_timesteps = self.num_timesteps, num_timesteps
            try:
                self.train(gradient_steps=int(self._train_ratio.owed), batch_size=self.batch_size)
            finally:
                self.num_timesteps = now

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        Sample, update the networks, write latents back; again and again.

        :param gradient_steps: number of updates
        :param batch_size: B, windows per update; None: the model's
        """
        self._take_up_settings()
        batch_size = self.batch_size if batch_size is None else batch_size
        self.policy.set_training_mode(True)
        self._ranks.merge_statistics(self.get_vec_normalize_env())
        for _ in range(gradient_steps):
            self._clock.start()
            self._update_learning_rate(self.policy.optimizer)
            self._write_back.write_ready()
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            posterior, metrics = self._update(batch)
            self._write_back.enqueue(batch.indices, posterior)
            self._n_updates += 1
            self._train_ratio.count_update()
            self._metrics.add(self._update.metric_names, metrics)
            self._log_eta()
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            if self._log_interval is not None and self._metrics.count >= self.log_every_updates:
                self.dump_logs()  # episodes may be long, or never end
        if self.device.type == "cpu":  # elsewhere reading them would wait for the device
            self._record_metrics()

    def _record_metrics(self) -> None:
        """Give the logger the means of the metrics, and warn once if returns lie outside of what the critic can say."""
        means = self._metrics.record(self.logger)
        self._check_returns(np.array([means.get(f"actor_critic/return_{end}", 0.0) for end in ("low", "high")]))

    def _log_eta(self) -> None:
        """Say once per ``learn``, after the fifth update, how long it will take."""
        seconds = self._clock.stop()
        if seconds is not None and self.verbose >= 1:
            updates_left = self._train_ratio.updates_in(max(0, self._total_timesteps - self.num_timesteps))
            print(self._clock.message(seconds, updates_left, self.device))

    def dump_logs(self) -> None:
        """Write log data; losses are means over all updates since the last time."""
        self._record_metrics()
        self._metrics.flush()
        self.logger.record("replay/rows", int(self.replay_buffer.filled.sum()))
        super().dump_logs()
        self._has_logged = True
