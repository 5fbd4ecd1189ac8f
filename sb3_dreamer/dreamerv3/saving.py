"""What of the algorithm is written to files, and by which rank."""

import io
import pathlib
from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar, cast

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_dreamer.common.buffers import SequenceReplayBuffer
from sb3_dreamer.common.distributed.ranks import Ranks
from sb3_dreamer.common.replay.write_back import LatentWriteBack
from sb3_dreamer.common.save_util import name_newer_numpy
from sb3_dreamer.common.type_aliases import PolicyState
from sb3_dreamer.dreamerv3.checks import Model, check_buffer, check_load_arguments

SelfSavedAlgorithm = TypeVar("SelfSavedAlgorithm", bound="SavedAlgorithm")


class SavedAlgorithm(OffPolicyAlgorithm):
    """Saving and loading of :class:`~sb3_dreamer.dreamerv3.dreamerv3.DreamerV3`, its base."""

    replay_buffer: SequenceReplayBuffer
    batch_length: int
    online_queue: bool
    _last_state: PolicyState | None
    _ranks: Ranks
    _write_back: LatentWriteBack

    @classmethod
    def load(
        cls: type[SelfSavedAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSavedAlgorithm:
        """
        As :meth:`BaseAlgorithm.load`.

        :param kwargs: arguments of the constructor that are to differ from the file's
        :raises TypeError: if the constructor has no such argument; ValueError: if the file holds another algorithm;
            ImportError: if it was written with a numpy that is newer than what the installed one can read
        """
        ours = [vars(base) for base in cls.__mro__ if issubclass(base, SavedAlgorithm)]
        check_load_arguments(kwargs, [attributes["__init__"] for attributes in ours if "__init__" in attributes])
        if "stats_window_size" in kwargs:
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")  # SB3 stores it so
        with name_newer_numpy(path):
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """As SB3's; of several ranks, which are all alike, the main one saves, and the others wait until the file is there."""
        save = partial(super().save, exclude=exclude, include=include)
        self._ranks.main_saves(save, path, (self.num_timesteps, self._n_updates))

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        As SB3's, all latents written. Of several ranks each writes its own rows and random state, rank 1 to
        ``..._rank1.pkl``; where only the main rank is asked, by a callback, the others follow after the rollout.
        """
        self._write_back.flush()
        self.replay_buffer.random_states = self._ranks.random_states()
        super().save_replay_buffer(self._ranks.file(path))
        self._ranks.request_buffer_save(path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        As :meth:`OffPolicyAlgorithm.load_replay_buffer`; what is collected next opens an episode. The model's ``buffer_size``
        holds: where the file has more rows, the newest of each environment are kept.

        :raises ValueError: if the buffer does not fit the model, which then keeps its own; ImportError: as :meth:`load`
        """
        current = self.replay_buffer
        try:
            with name_newer_numpy():
                super().load_replay_buffer(self._ranks.file(path), truncate_last_traj)
            check_buffer(self.replay_buffer, cast(Model, self))
        except BaseException:
            self.replay_buffer = current
            raise
        self.replay_buffer.resize(max(self.buffer_size // self.n_envs, 1))
        self.replay_buffer.online_queue = self.online_queue
        self.replay_buffer.storage = self.replay_buffer_kwargs.get("storage", "host")
        self.replay_buffer.set_window(self.batch_length)
        self._write_back, self._last_state = LatentWriteBack(self.replay_buffer), None
        self._ranks.restore_random_states(self.replay_buffer.random_states)

    def _excluded_save_params(self) -> list[str]:
        mine = [
            "loss_module",
            "_update",
            "_write_back",
            "_act",
            "_last_state",
            "_metrics",
            "_check_returns",
            "_clock",
            "_ranks",
        ]
        mine += ["_settings", "_log_interval", "_has_logged", "_n_updates_before"]
        return [*super()._excluded_save_params(), *mine]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
