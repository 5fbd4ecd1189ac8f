"""Off-policy training by several processes that count, stop, log and save as one."""

import io
import pathlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_dreamer.common.distributed.launch import join_ranks
from sb3_dreamer.common.files import atomic_file, with_suffix
from sb3_dreamer.common.functional import tensors_of
from sb3_dreamer.common.memory import record_memory
from sb3_dreamer.common.metrics import show_whole_keys
from sb3_dreamer.common.progress_bar import UpdateProgressBar

SelfDistributed = TypeVar("SelfDistributed", bound="DistributedOffPolicyAlgorithm")


def frozen(value: Any) -> Any:
    """:return: a copy of dicts and lists, so that a change in place shows"""
    if isinstance(value, dict):
        return {key: frozen(part) for key, part in value.items()}
    return [frozen(part) for part in value] if isinstance(value, list) else value


def write_whole(save: Callable[[Any], None], path: Any, *, suffix: str) -> None:
    """
    :param save: writes to a file
    :param path: path of the file, which is complete or unchanged afterwards; or an open file
    :param suffix: of the path, if it has none
    """
    if not isinstance(path, str | pathlib.Path):
        save(path)
        return
    with atomic_file(with_suffix(pathlib.Path(path), suffix)) as file:
        save(file)


class DistributedOffPolicyAlgorithm(OffPolicyAlgorithm):
    """
    An off-policy algorithm for one process, or for the ranks of a launcher such as torchrun. Each rank has environments, a
    replay buffer and random generators of its own. Environment steps are counted over all ranks, a rollout ends on all of
    them, and the main rank logs, runs the callbacks and saves the model. Without a launcher there is one rank.

    Subclasses average gradients themselves, and tell this class what it must know by the methods of the last section.

    :param policy: as SB3's
    :param env: as SB3's
    :param device: as SB3's; each rank of a machine gets a GPU of its own
    :param verbose: as SB3's, on the main rank
    :param kwargs: as those of :class:`OffPolicyAlgorithm`
    """

    replay_buffer: Any

    def __init__(self, policy: Any, env: Any, *, device: th.device | str = "auto", verbose: int = 0, **kwargs: Any):
        self._ranks = join_ranks()
        self._settings: dict[str, Any] = {}  # those in use, by name
        self._log_interval: int | None = None  # of the last ``learn``
        self._end_of_learn = ExitStack()
        verbose = verbose if self._ranks.is_main else 0
        super().__init__(policy, env, device=self._ranks.device(device), verbose=verbose, **kwargs)

    @property
    def n_ranks(self) -> int:
        """Processes that train this model together."""
        return self._ranks.size

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; each rank has a seed of its own."""
        super().set_random_seed(self._ranks.seed(seed))

    def _setup_model(self) -> None:
        """As SB3's; only the main rank prints and logs."""
        self._ranks.silence(self)
        super()._setup_model()

    # ---- learn ----

    def learn(
        self: SelfDistributed,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDistributed:
        """
        As :meth:`OffPolicyAlgorithm.learn`; steps are those of all ranks.

        :param tb_log_name: name of the run in TensorBoard; None: that of the class
        """
        self._log_interval = log_interval
        tb_log_name = type(self).__name__ if tb_log_name is None else tb_log_name
        with self._end_of_learn, self._ranks.learning(self._rank_invariants(total_timesteps)):
            callback, progress_bar = self._ranks.callback(callback, progress_bar)
            args = total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            super().learn(*args)  # type: ignore[arg-type]  # SB3's `log_interval` may be None, too
            self._on_learn_end()
            self._merge_statistics()
            self._ranks.save_follower_buffers(self._ranks.shared_paths(), self.save_replay_buffer)
        return self

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """As SB3's; the progress bar also shows the updates per second."""
        if progress_bar:
            if not isinstance(callback, list):
                callback = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
            callback = [*callback, UpdateProgressBar(self.n_ranks)]
        return super()._init_callback(callback)

    def dump_logs(self) -> None:
        """As SB3's; also record the memory that is used."""
        record_memory(self.logger, self.device)
        super().dump_logs()

    def at_end_of_learn(self, function: Callable[[], None]) -> None:
        """:param function: called once at the end of ``learn``, also if it ends by an exception"""
        self._end_of_learn.callback(function)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """As SB3's; all ranks start with the weights, the optimizer and the statistics of the main rank."""
        self._ranks.broadcast(tensors_of(self.get_parameters()))
        self._merge_statistics()
        setup = super()._setup_learn(*args, **kwargs)
        show_whole_keys(self.logger, getattr(self.observation_space, "spaces", {}))
        return setup

    def _merge_statistics(self) -> None:
        """VecNormalize has the statistics of what all ranks have seen."""
        self._ranks.merge_statistics(unwrap_vec_normalize(self.env) if self.env is not None else None)

    def _all_ranks(self, flag: bool) -> bool:
        """:return: whether it is True on all ranks"""
        return self._ranks.sync_rollout(0, True, flag).can_sample

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
        As SB3's, then agree with the other ranks on steps and stop. An interruption loses no step: the transition that SB3
        drops when a callback returns False is stored, and after an exception the next ``learn`` resets the environments.
        """
        steps_before = self.num_timesteps
        try:
            args = env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            rollout = super().collect_rollouts(*args)
            if not rollout.continue_training:
                self._store_dropped_transition(replay_buffer, callback)
        except BaseException:
            self._last_obs = None  # somewhere between two steps: the environments must be reset
            self._count_steps(self.num_timesteps - steps_before, self._can_sample())
            raise
        agreed = self._ranks.sync_rollout(
            rollout.episode_timesteps, rollout.continue_training, self._can_sample(), bool(self._changed_settings())
        )
        self.num_timesteps, can_sample = steps_before + agreed.n_steps, agreed.can_sample
        try:
            if agreed.has_changes:
                hint = ": a callback that changes settings needs `all_ranks = True`"
                self._ranks.check_equal(self._rank_invariants(self._total_timesteps), hint)
                self._apply_new_settings()
                can_sample = self._all_ranks(self._can_sample())
        finally:  # steps count where a setting is refused, too
            self._count_steps(agreed.n_steps, can_sample)
        if self.gradient_steps != 0:
            self._merge_statistics()
        self._ranks.save_follower_buffers(agreed.buffer_paths, self.save_replay_buffer)
        return rollout._replace(continue_training=agreed.goes_on)

    def _remember_settings(self, names: Iterable[str]) -> None:
        """:param names: of the attributes that are settings, whose values are in use from now on"""
        self._settings = {name: frozen(getattr(self, name)) for name in names}

    def _changed_settings(self) -> list[str]:
        """:return: names of the settings that a user or a callback has changed since"""
        return [name for name, value in self._settings.items() if getattr(self, name) != value]

    def _store_dropped_transition(self, replay_buffer: ReplayBuffer, callback: BaseCallback) -> None:
        step = callback.locals
        self._store_transition(
            replay_buffer, *(step[name] for name in ("buffer_actions", "new_obs", "rewards", "dones", "infos"))
        )
        self._update_info_buffer(step["infos"], step["dones"])
        self._episode_num += int(step["dones"].sum())

    def _count_other_ranks(self, n_envs: int) -> None:
        """
        At each step, before the callbacks see the count: SB3 adds this rank's steps, this adds those of the others. After a
        rollout the count is exact.

        :param n_envs: environments of this rank
        """
        self.num_timesteps += n_envs * (self.n_ranks - 1)

    # ---- files ----

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        As SB3's; all ranks hold the same model, the main one saves it, and the others wait until the file is there. A file
        that exists is replaced once the new one is complete.
        """
        save = partial(super().save, exclude=exclude, include=include)
        self._ranks.main_saves(partial(write_whole, save, suffix="zip"), path, (self.num_timesteps, self._n_updates))

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        As SB3's. Each rank writes its own rows and random state, rank 1 to ``..._rank1.pkl``; where only the main rank is
        asked, by a callback, the others follow after the rollout. A file that exists is replaced once the new one is complete.
        """
        self.replay_buffer.random_states = self._ranks.random_states()
        write_whole(super().save_replay_buffer, self._ranks.file(path), suffix="pkl")
        self._ranks.request_buffer_save(path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """As SB3's; each rank reads its own file. If the buffer does not fit, the model keeps its current one."""
        current = self.replay_buffer
        try:
            super().load_replay_buffer(self._ranks.file(path), truncate_last_traj)
            self._adopt_replay_buffer()
        except BaseException:
            self.replay_buffer = current
            raise
        self._ranks.restore_random_states(getattr(self.replay_buffer, "random_states", None))

    def _excluded_save_params(self) -> list[str]:
        """The ranks are those of the process that loads the file."""
        return [*super()._excluded_save_params(), "_ranks", "_settings", "_log_interval", "_end_of_learn"]

    # ---- what a subclass provides. If it overrides `_sample_action`, it also calls `_count_other_ranks` there. ----

    def _rank_invariants(self, total_timesteps: int) -> dict[str, Any]:
        """:return: by name what must be the same on all ranks, because ranks that differ would wait for each other forever"""
        return {"total_timesteps": total_timesteps, "num_timesteps": self.num_timesteps}

    def _can_sample(self) -> bool:
        """:return: whether the replay buffer of this rank holds a batch"""
        return True

    def _apply_new_settings(self) -> None:
        """After a rollout, on all ranks, if one has changed a setting."""

    def _count_steps(self, n_steps: int, can_sample: bool) -> None:
        """
        After a rollout.

        :param n_steps: steps of all ranks
        :param can_sample: whether all can sample
        """

    def _adopt_replay_buffer(self) -> None:
        """
        After a replay buffer was read from a file.

        :raises ValueError: if it does not fit the model
        """

    def _on_learn_end(self) -> None:
        """At the end of ``learn``."""
