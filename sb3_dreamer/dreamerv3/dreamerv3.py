"""DreamerV3 inside Stable-Baselines3's collect/train loop."""

import io
import pathlib
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
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

import sb3_dreamer.dreamerv3.checks as checks
from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.clock import TrainingClock
from sb3_dreamer.common.env_checker import check_env
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.preprocessing import decode_actions, encode_actions
from sb3_dreamer.common.save_util import explain_newer_numpy
from sb3_dreamer.common.schedules import TrainRatio, lr_scaling_factor, make_schedule, schedule_value, warmup_factor
from sb3_dreamer.common.type_aliases import LatentState, PolicyState
from sb3_dreamer.common.value_checks import RangeCheck
from sb3_dreamer.common.vec_normalize import in_model_layout
from sb3_dreamer.common.workers import watch_workers
from sb3_dreamer.dreamerv3.counterparts import name_counterparts
from sb3_dreamer.dreamerv3.fast.make_update import Acting, Update, make_acting, make_loss, make_update
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossScales
from sb3_dreamer.dreamerv3.policies import CnnPolicy, DreamerPolicy, MlpPolicy, MultiInputPolicy, check_step
from sb3_dreamer.dreamerv3.predictions import WorldModelPredictions
from sb3_dreamer.dreamerv3.resume import ResumableAlgorithm

SelfDreamerV3 = TypeVar("SelfDreamerV3", bound="DreamerV3")


class DreamerV3(WorldModelPredictions, ResumableAlgorithm):
    """
    DreamerV3: learn a world model from replayed sequences, and actor and critic from trajectories imagined with it.

    Paper: Hafner et al., "Mastering diverse control tasks through world models" (Nature 2025,
    https://arxiv.org/abs/2301.04104). Where the paper and the authors' code differ, this follows their code of 2025.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a class
    :param env: environment or its id (None is for ``load``)
    :param learning_rate: a number, a function of the remaining progress (1 to 0), or a list of (environment step, value)
        that is interpolated linearly. It is multiplied by the warm-up factor, by the factor of ``distributed_scaling`` and,
        for world model, actor or critic, by ``lr_scale`` in ``policy_kwargs["optimizer_kwargs"]``.
    :param buffer_size: rows (observations) of the replay buffer over all environments
    :param learning_starts: environment steps with random actions before training starts; with 0 the policy acts from the
        first step
    :param batch_size: B, sequences (windows of consecutive rows) per update
    :param batch_length: T, rows (time steps) per window
    :param training_ratio: replayed (trained) time steps per environment step, counted over all environments
    :param model_size: ``"auto"`` (1m without images, 12m with), ``"debug"``, ``"nano"`` ... ``"XL"``, ``"1m"`` ... ``"400m"``
    :param imagination_horizon: H, steps of an imagined trajectory
    :param gamma: discount factor; it is part of the target of the continue head, gamma * (1 - terminal)
    :param return_lambda: lambda of the returns
    :param tau: soft update coefficient of the slow critic (target network), which is updated at each update
    :param ent_coef: weight of the actor's entropy; ``"auto"``: it falls geometrically from 0.05 to 0.003 over the steps of
        ``learn``, and stays 0.05 until two rewards have differed, or until an episode has terminated if all rewards are equal
        and not 0
    :param free_nats: dynamics and representation loss are clipped from below at this value
    :param loss_scales: weights of the losses by name, see :data:`~sb3_dreamer.dreamerv3.losses.LOSS_SCALES`; losses that are
        not named keep their weight. ``"reconstruction"`` takes a number, or weights by observation key. ``"harmony"`` gives
        reward, continue and each reconstructed key a weight that rises as the running mean of its loss falls, and reward and
        continue at least that of the keys, see :class:`~sb3_dreamer.common.loss_weights.HarmonyWeights`.
    :param agc_clip: adaptive gradient clipping: largest ratio of a gradient's norm to the norm of its parameter tensor
    :param lr_warmup_steps: updates until the learning rate is reached; the first update has learning rate 0
    :param replay_context: start each window from the latent state stored with the row before it; after each update, store the
        new latent states of the window's rows
    :param online_queue: put each newly completed window (these do not overlap) into a batch first, and fill the rest of the
        batch with uniformly drawn windows
    :param imagine_last: start imagination from only the last ``imagine_last`` rows of each window (2 to ``batch_length``; 0:
        all rows); the critic's loss on replayed rewards uses the same rows
    :param precision: ``"fp32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 if the device is a CUDA device that supports it
    :param compile: True: compile one time step of the loops of ``fused``; on CUDA also compile the whole objective, and
        capture update and acting as CUDA graphs. ``"auto"``: True on CUDA, False elsewhere. With False, several ranks reduce
        their gradients through torch's DDP
    :param fused: ``"auto"``: a faster implementation of the loops over time of the recurrent model and of imagination, with
        the same results, if the model supports it; False: the plain modules
    :param distributed_scaling: how the learning rate scales with the number of ranks (torchrun), each of which has its own
        batch and environments: ``"sqrt"``, ``"linear"`` or None; ``"sqrt+priming"`` and ``"linear+priming"`` start with a
        lower rate, see :func:`~sb3_dreamer.common.schedules.lr_scaling_factor`
    :param reduce_dtype: in which precision ranks send their gradients: ``"fp32"``, or ``"bf16"``, half of the bytes, for slow
        networks; no effect where torch's DDP reduces them
    :param log_every_updates: also write a log line after this many updates without one (for long episodes); no effect with
        ``log_interval=None`` in ``learn``
    :param train_freq: steps to collect between calls of ``train``, or ``(n, "episode")``
    :param replay_buffer_class: a subclass of :class:`~sb3_dreamer.common.buffers.SequenceReplayBuffer`
    :param replay_buffer_kwargs: keyword arguments of the replay buffer
    :param policy_kwargs: individual dimensions (``deter, hidden, stoch, classes, blocks, units, depth, ...``, see
        :class:`~sb3_dreamer.dreamerv3.model_sizes.ModelSize`), custom networks, observation keys, optimizer, and what else
        :class:`~sb3_dreamer.dreamerv3.policies.DreamerPolicy` takes
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of the TensorBoard log
    :param verbose: 0 silent, 1 info, 2 debug
    :param seed: seed of all random generators
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    :param _init_setup_model: build the networks now
    :raises ValueError: if an argument is out of its range
    :raises TypeError: if an argument is unknown; for arguments of other SB3 algorithms it names the counterpart
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DreamerPolicy
    replay_buffer: SequenceReplayBuffer
    loss_module: DreamerLoss
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
        ent_coef: float | str = 3e-4,
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
        reduce_dtype: str = "fp32",
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
        super().__init__(
            policy=policy,
            env=env,
            learning_rate=learning_rate,
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
            verbose=verbose,
            device=device,
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
        self.reduce_dtype = reduce_dtype
        self.log_every_updates = log_every_updates
        self._has_logged, self._n_updates_before = False, 0  # whether this `learn` has logged; updates before it
        self._last_state: PolicyState | None = None
        self._train_ratio = TrainRatio()
        self._metrics = MetricAverager()
        self._check_returns = RangeCheck("return")
        self._clock = TrainingClock()
        if _init_setup_model:
            self._setup_model()

    # ---- build ----

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """As SB3's, but check the environment first, with errors that say what to do, and watch its processes."""
        return watch_workers(OffPolicyAlgorithm._wrap_env(check_env(env), verbose, monitor_wrapper))

    def _setup_model(self) -> None:
        """As SB3's; some constructor arguments are passed on to the policy and to the replay buffer."""
        checks.check_arguments(self)
        self._settings = {}  # empty: networks and buffer are built below from the present settings
        user_policy_kwargs, user_buffer_kwargs = self.policy_kwargs, self.replay_buffer_kwargs
        # Only while SB3 passes these dicts on, because `load` compares the saved `policy_kwargs` with its argument.
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
        self._apply_settings()
        self._setup_update(is_first=True)

    def _setup_update(self, is_first: bool = False) -> None:
        """
        Create the objective, the update and the acting step from the settings.

        :param is_first: True while the model is being built; only then a line is printed if the model does not support
            ``fused``
        """
        settings = {name: getattr(self, name) for name in checks.SETTINGS_OF_LOSS}
        self.loss_module = make_loss(self.policy, self.fused, self.verbose if is_first else 0, **settings)
        of_update = {name: getattr(self, name) for name in ("agc_clip", "tau", "compile", "verbose", "reduce_dtype")}
        self._update = make_update(self.loss_module, ranks=self._ranks, **of_update)
        self._act = make_acting(self.policy, self.compile)

    def _setup_lr_schedule(self) -> None:
        """As SB3's; a schedule may also be a list of points."""
        self.lr_schedule = make_schedule(self.learning_rate)

    # ---- learn ----

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        """As SB3's; first apply changed settings, then make the updates that an interrupted ``learn`` left undone."""
        if reset_num_timesteps or self._last_obs is None:
            self._last_state = None  # because SB3 resets the environments below
        self._clock = TrainingClock(self._clock.windows)
        self._vec_normalize_env = in_model_layout(self.get_vec_normalize_env(), self.observation_space)
        self._apply_settings()
        self._setup_update()
        checks.log_run_setup(self, total_timesteps, reset_num_timesteps)
        steps_before = self.num_timesteps
        self._has_logged, self._n_updates_before = False, self._n_updates
        setup = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        self._clock.begin(self.num_timesteps)
        self._make_owed_updates(steps_before)
        if reset_num_timesteps:
            self._train_ratio.reset()
        return setup

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """:return: the environment's VecNormalize; SB3 returns ``_vec_normalize_env``, which may be our wrapper of it"""
        return unwrap_vec_normalize(self.env) if self.env is not None else None

    def _on_learn_end(self) -> None:
        """
        Check that updates are not skipped (on CUDA, ``train`` does not). Write a log line if this ``learn`` has written none.
        Warn if no update was made because the buffer holds no complete window.
        """
        if self._log_interval is not None and self._metrics.count > 0 and not self._has_logged:
            self.dump_logs()
        self._check_ranges(self._metrics.record(self.logger))
        if self._n_updates == self._n_updates_before:
            checks.warn_if_no_window(self)

    # ---- collect ----

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Act with the policy, or at random before ``learning_starts``. The recurrent state is updated in both cases. SB3's own
        method keeps no state.

        :param learning_starts: environment steps with random actions
        :param action_noise: not supported, always None
        :param n_envs: number of environments
        :return: actions for the environments, and for the buffer (scaled to [-1, 1] for a Box)
        :raises ValueError: if the actor or the recurrent state is NaN or infinite; no environment has been stepped then
        """
        assert self._last_obs is not None and action_noise is None
        self._clock.enter("acting")
        if self._last_state is None:
            # Without a state, the model treats this step as the first of an episode, so the buffer must do the same.
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
            check_step(buffer_actions, state.deter)
            if isinstance(self.action_space, spaces.Box):
                buffer_actions = buffer_actions.clip(-1.0, 1.0)
            actions = decode_actions(buffer_actions, self.action_space)
        self._last_state = state
        self._clock.enter("environment")
        self._count_other_ranks(n_envs)  # SB3 adds only the steps of this rank to `num_timesteps`
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
        """As SB3's; also store where episodes start, and the latent state from which the action was chosen."""
        assert isinstance(replay_buffer, SequenceReplayBuffer)
        assert self._last_state is not None and self._last_episode_starts is not None
        replay_buffer.mark_starts(self._last_episode_starts)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        latent = LatentState(self._last_state.deter.unsqueeze(1), self._last_state.stoch.unsqueeze(1))  # (n_envs, 1, ...)
        replay_buffer.update_latents(replay_buffer.acting_indices, latent)
        self._last_episode_starts = np.array(dones, dtype=bool)
        # Some VecEnvs return the same array at every step and overwrite it.
        self._last_obs = deepcopy(self._last_obs)

    def _can_sample(self) -> bool:
        return self.replay_buffer.can_sample()

    def _count_steps(self, n_steps: int, can_sample: bool) -> None:
        """After a rollout: set ``gradient_steps`` to the number of updates due. SB3's loop then passes it to :meth:`train`."""
        can_train = self.num_timesteps > self.learning_starts and can_sample
        self.gradient_steps = self._train_ratio.add_steps(n_steps, can_train)

    # ---- train ----

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """
        Sample a batch, update the networks, write the new latents to the buffer; repeat. An update with losses or gradients
        that are not finite is skipped, and changes neither the model nor the buffer.

        :param gradient_steps: number of updates
        :param batch_size: B, windows per update; None: ``self.batch_size``
        :raises UnstableTrainingError: if ten updates in a row were skipped; on CUDA it is raised with the next log line
        """
        self._apply_new_settings()
        self._clock.enter("update")
        batch_size = self.batch_size if batch_size is None else batch_size
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self._clock.start()
            self._update_learning_rate(self.policy.optimizer)
            self.loss_module.set_progress(self._current_progress_remaining, self.replay_buffer.returns_differ)
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            # Loss, gradient, clipping, optimizer step, slow critic: `update.py`, or a faster version in `fast/`.
            posterior, metrics, is_finite = self._update(batch)
            self.replay_buffer.refresh_latents(batch.indices, posterior, is_finite)
            self._n_updates += 1
            self._train_ratio.count_update()
            self._metrics.add(self._update.metric_names, metrics, is_finite, batch)
            self._clock.add_update(batch.indices, self.replay_buffer.counts, self.replay_buffer.n_new_windows, self.n_ranks)
            steps_left = max(0, self._total_timesteps - self.num_timesteps)
            self._clock.report(self._train_ratio.updates_in(steps_left), self.device, self.verbose)
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            if self._log_interval is not None and self._metrics.count >= self.log_every_updates:
                self.dump_logs()  # SB3 writes a line every `log_interval` episodes, and episodes may be long
        if self.device.type == "cpu":  # on CUDA, reading the metrics would wait for the device
            self._metrics.record(self.logger)
        self._clock.enter("environment")

    def _make_owed_updates(self, num_timesteps: int) -> None:
        """
        Make the updates that were still due when ``learn`` was stopped. A schedule of the learning rate is evaluated at the
        step of the stop.

        :param num_timesteps: environment steps at the stop
        """
        if self._all_ranks(self._can_sample()) and self._train_ratio.owed >= 1:
            now, self.num_timesteps = self.num_timesteps, num_timesteps
            try:
                self.train(gradient_steps=int(self._train_ratio.owed), batch_size=self.batch_size)
            finally:
                self.num_timesteps = now

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """Set the learning rate: schedule times warm-up times scaling with the ranks, and ``lr_scale`` for single parts."""
        rate = schedule_value(self.lr_schedule, self.num_timesteps, self._current_progress_remaining)
        rate *= warmup_factor(self._n_updates, self.lr_warmup_steps)
        rate *= lr_scaling_factor(self.distributed_scaling, self.n_ranks, 1.0 - self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

    # ---- settings ----

    def _apply_settings(self) -> None:
        """
        Check the settings, then apply those of the training loop and of the buffer; :meth:`_setup_update` applies the others.
        Recurrent state and optimizer do not change. Updates that are already due still train as many replayed time steps.

        :raises ValueError: as the constructor, or if a setting has changed that can only be set in the constructor
        """
        checks.check_arguments(self)
        checks.check_unchanged(self, self._settings)
        if "learning_rate" in self._changed_settings():
            self._setup_lr_schedule()
        self.policy.set_precision(self.precision)
        self._convert_train_freq()
        self._train_ratio.set_rate(self.training_ratio, self.n_ranks * self.batch_size * self.batch_length)
        self.replay_buffer.online_queue = self.online_queue
        self.replay_buffer.set_window(self.batch_length)
        self.replay_buffer.set_image_keys(self.policy.image_keys)
        self._remember_settings(checks.SETTINGS)

    def _apply_new_settings(self) -> None:
        """
        Apply the settings that a user or a callback has changed, before the next update.

        :raises ValueError: as :meth:`_apply_settings`
        """
        changed = self._changed_settings()
        if not changed:
            return
        before = self._settings
        self._apply_settings()
        if not set(changed).isdisjoint(checks.SETTINGS_OF_UPDATE):
            try:
                self._setup_update()
            except ValueError:
                self._settings = before  # so that the next update raises, too
                raise
        if "batch_length" in changed:
            self.replay_buffer.warn_if_small()

    def _rank_invariants(self, total_timesteps: int) -> dict[str, Any]:
        return checks.rank_invariants(self, total_timesteps)

    # ---- log ----

    def _check_ranges(self, means: dict[str, float]) -> None:
        """Warn once if returns or rewards lie outside of the range that a two-hot head can represent."""
        self._check_returns(np.array([means.get(f"actor_critic/return_{end}", 0.0) for end in ("low", "high")]))
        self.replay_buffer.check_range(self._vec_normalize_env)

    def dump_logs(self) -> None:
        """Write a log line; losses are means over all updates since the last line that were not skipped."""
        self._check_ranges(self._metrics.record(self.logger))
        self._metrics.flush()
        self.logger.record("replay/rows", int(self.replay_buffer.filled.sum()))
        self._clock.record(self.logger, self.num_timesteps)
        super().dump_logs()
        self._has_logged = True

    # ---- save and load ----

    @classmethod
    def load(
        cls: type[SelfDreamerV3],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfDreamerV3:
        """
        As :meth:`BaseAlgorithm.load`. If the saved model was seeded, random numbers go on where it was saved, unless ``seed``
        is passed.

        :param kwargs: arguments of the constructor that replace those in the file
        :raises TypeError: if the constructor has no such argument
        :raises ValueError: if the file holds another algorithm
        :raises ImportError: if the file was written with a newer numpy and the installed numpy cannot read it
        """
        checks.check_load_arguments(kwargs, [base for base in cls.__mro__ if issubclass(base, DreamerV3)])
        if "stats_window_size" in kwargs:
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")  # SB3 stores it under this name
        with explain_newer_numpy(path):
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if "seed" not in kwargs:
            model.continue_random_streams()
        return model

    def _adopt_replay_buffer(self) -> None:
        """Check a buffer from a file, and give it the model's settings."""
        checks.check_loaded_buffer(self.replay_buffer, self)
        kwargs = self.replay_buffer_kwargs
        self.replay_buffer.set_storage(kwargs.get("storage", "memory"), kwargs.get("storage_folder"))
        self.replay_buffer.resize(max(self.buffer_size // self.n_envs, 1))
        self.replay_buffer.online_queue = self.online_queue
        self.replay_buffer.set_window(self.batch_length)
        self._last_state = None

    def _excluded_save_params(self) -> list[str]:
        """Not saved: attributes that the constructor creates again, and the state of a running ``learn``."""
        mine = "loss_module _update _act _last_state _metrics _check_returns _clock _has_logged _n_updates_before".split()
        return [*super()._excluded_save_params(), *mine]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        """The policy and its optimizer hold all tensors. SB3's default omits the optimizer."""
        return ["policy", "policy.optimizer"], []
