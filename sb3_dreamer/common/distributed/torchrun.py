"""Ranks of torchrun: what they agree on, share, and leave to the main one. Imported only where a launcher was at work."""

import atexit
import io
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from sb3_dreamer.common.distributed.ranks import Agreement, Ranks

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# The main rank may evaluate for hours while the others wait for its word. Launchers notice a rank that has died at once.
COLLECTIVE_TIMEOUT = timedelta(days=7)
SAVE_TIMEOUT = timedelta(minutes=2)
SEEDS_BETWEEN_RANKS = 1000
# Seconds in which the launcher, which looks ten times a second, sees the rank that has ended, and not those that ended for it.
FAILURE_GRACE_SECONDS = 1.0
# Torch 2.13 renames it.
ALL_GATHER = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


class RankLostError(RuntimeError):
    """A rank that the others need has ended."""


@lru_cache
def agreement_group() -> Any:
    """:return: torch's group for what ranks agree on, one for all models of a process"""
    return dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def report_uncaught(show: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """
    In the place of ``sys.excepthook``: torchrun's report shows the exception that ended a rank.

    :param show: the hook before
    :param kind: class of the exception
    :param error: the exception
    :param trace: its traceback
    """
    if isinstance(error, Exception) and not isinstance(error, RankLostError):
        try:
            raise error.with_traceback(trace)  # it is written down as one that is being handled
        except Exception:
            get_error_handler().record_exception(error)
    show(kind, error, trace)


class ManyRanks(Ranks):
    """
    The ranks of a launcher. Collectives of tensors go by torch's default group (NCCL on CUDA, gloo on a CPU); what is agreed
    on once per rollout goes by a gloo group of its own, which waits as long as the main rank evaluates.

    Every method but :meth:`device`, :meth:`silence`, :meth:`callback` and :meth:`file` must be called on all ranks, as often
    and in the same order.
    """

    is_launched = True
    has_failed = False  # any model of this process
    reports = False  # what ends this process

    def __init__(self) -> None:
        if not dist.is_initialized():
            if th.cuda.is_available():
                th.cuda.set_device(self.local_rank % th.cuda.device_count())
            dist.init_process_group()
            atexit.register(self._leave)
        if not ManyRanks.reports:
            ManyRanks.reports = True
            sys.excepthook = partial(report_uncaught, sys.excepthook)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0
        self.agreement_group = agreement_group()
        self.is_learning = False
        self._buffer_paths: list[str] = []
        self._merged: tuple[VecNormalize, list[np.ndarray]] | None = None

    @property
    def local_rank(self) -> int:
        """Number of this rank on its machine."""
        return int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))

    @staticmethod
    def _leave() -> None:
        # After an error others may be gone, and leaving would wait for them: the launcher could not see that we have ended.
        if not ManyRanks.has_failed and not hasattr(sys, "last_value") and dist.is_initialized():
            dist.destroy_process_group()

    def device(self, device: th.device | str) -> th.device | str:
        """
        As :meth:`Ranks.device`: each rank of a machine has a GPU of its own.

        :raises ValueError: if a GPU is named by its number, or there are fewer than ranks
        """
        wanted = get_device(device)
        if wanted.type != "cuda":
            return wanted
        if wanted.index is not None and wanted.index != self.local_rank:
            raise ValueError(f"`device` must be 'auto', 'cuda' or 'cpu' where a launcher starts the ranks, got {device!r}")
        if self.local_rank >= th.cuda.device_count():
            raise ValueError(
                f"`device`: rank {self.local_rank} of this machine has no GPU, there are {th.cuda.device_count()}: lower "
                "--nproc-per-node, or use device='cpu'"
            )
        return th.device("cuda", self.local_rank)

    def seed(self, seed: int | None) -> int | None:
        """As :meth:`Ranks.seed`: ``1000`` apart. Without a seed each draws one, for environments may all have the same."""
        if self.size == 1:
            return seed
        if seed is None:
            return int.from_bytes(os.urandom(4), "big")
        return seed + SEEDS_BETWEEN_RANKS * self.rank

    def share(self, value: Any) -> Any:
        """:return: the main rank's value, on all"""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.agreement_group)
        return values[0]

    # ---- what only the main rank does ----

    def silence(self, model: "BaseAlgorithm") -> None:
        """As :meth:`Ranks.silence`."""
        if not self.is_main:
            model.verbose, model.tensorboard_log = 0, None
            model.set_logger(Logger(None, []))

    def callback(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """As :meth:`Ranks.callback`: others than the main rank run those that say ``all_ranks = True``."""
        callbacks = flatten(callback) + ([ProgressBarCallback()] if progress_bar and self.is_main else [])
        if not self.is_main:
            callbacks = [one for one in callbacks if getattr(one, "all_ranks", False)]
        for one in callbacks:
            if isinstance(one, ProgressBarCallback):
                one._on_step = partial(draw_all_ranks_steps, one, self.size)  # type: ignore[method-assign]
        return callbacks, False

    def main_saves(self, save: Callable[[Any], None], path: Any, progress: tuple[int, int]) -> None:
        """
        As :meth:`Ranks.main_saves`, without a collective: a script may let the main rank alone save, and within ``learn`` its
        callbacks do. Where the main rank saves to another path, the others wait in vain, and not for long.
        """
        if isinstance(path, io.IOBase):
            if self.is_main:
                save(path)
            return
        if self.is_main:
            target = Path(path) if Path(path).suffix else Path(f"{path}.zip")  # as SB3 names it
            unfinished = target.with_name(f"{target.name}.unfinished")
            save(unfinished)
            unfinished.replace(target)  # at once: others may be reading the one before
        if self.is_learning or not dist.is_initialized():
            return
        key, store = f"saved {path} after {progress}", _get_default_store()
        if self.is_main:
            store.set(key, "")
            return
        try:
            store.wait([key], SAVE_TIMEOUT)
        except RuntimeError:
            warnings.warn(f"The main rank, which alone writes, has not saved {path} within {SAVE_TIMEOUT.seconds} s")

    # ---- what all do together ----

    @contextmanager
    def learning(self, facts: dict[str, Any]) -> Iterator[None]:
        """
        As :meth:`Ranks.learning`; an error goes into the launcher's report, which names the first one.

        :raises ValueError: if the ranks differ in a fact
        :raises RankLostError: if another rank has ended
        """
        self.is_learning = True
        try:
            self.check_equal(facts)
            yield
        except BaseException as error:
            ManyRanks.has_failed = True
            if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
                time.sleep(FAILURE_GRACE_SECONDS)
                message = (
                    f"Rank {self.rank} ends because another rank has ended or is out of reach: that one's error came first"
                )
                raise RankLostError(message) from error
            raise
        finally:
            self.is_learning = False

    def check_equal(self, facts: dict[str, Any], hint: str = "") -> None:
        """As :meth:`Ranks.check_equal`."""
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, facts, group=self.agreement_group)
        for name in facts:
            values = [theirs[name] for theirs in everyone]
            if any(value != values[0] for value in values):
                raise ValueError(f"`{name}` must be the same on all ranks, got {values}{hint}")

    def sync_rollout(self, n_steps: int, goes_on: bool, can_sample: bool, has_changes: bool = False) -> Agreement:
        """As :meth:`Ranks.sync_rollout`: one small all-reduce."""
        mine = [n_steps, int(not goes_on), int(not can_sample), len(self._buffer_paths), int(has_changes)]
        sums = th.tensor(mine)  # (5,)
        dist.all_reduce(sums, group=self.agreement_group)
        total, stops, empty, n_paths, n_changed = sums.tolist()
        return Agreement(total, stops == 0, empty == 0, self.shared_paths() if n_paths else [], n_changed > 0)

    def shared_paths(self) -> list[str]:
        """As :meth:`Ranks.shared_paths`."""
        paths, self._buffer_paths = self.share(self._buffer_paths), []
        return list(paths)

    def save_follower_buffers(self, paths: list[str], save: Callable[[str], None]) -> None:
        """As :meth:`Ranks.save_follower_buffers`. The barrier waits long, because writing a large buffer takes long."""
        for path in paths:
            if not self.is_main:
                save(path)
        if paths:
            dist.barrier(group=self.agreement_group)

    def merge_statistics(self, vec_normalize: VecNormalize | None) -> None:
        """As :meth:`Ranks.merge_statistics`: what came since the last time is summed over the ranks, as counts and moments."""
        if vec_normalize is None:
            return
        observations = getattr(vec_normalize, "obs_rms", {})
        statistics = [*(observations.values() if isinstance(observations, dict) else [observations]), vec_normalize.ret_rms]
        sums = [to_sums(one) for one in statistics]
        if self._merged is None or self._merged[0] is not vec_normalize:
            merged = self.share(sums)  # all begin with the main rank's
        else:
            news = [th.from_numpy(mine - old) for mine, old in zip(sums, self._merged[1], strict=True)]
            for part in news:
                dist.all_reduce(part, group=self.agreement_group)
            merged = [old + part.numpy() for old, part in zip(self._merged[1], news, strict=True)]
        for one, part in zip(statistics, merged, strict=True):
            from_sums(one, part)
        self._merged = vec_normalize, [to_sums(one) for one in statistics]

    def gather(self, tensor: th.Tensor) -> th.Tensor:
        """As :meth:`Ranks.gather`."""
        everyone = tensor.new_empty(self.size * tensor.shape[0], *tensor.shape[1:])
        ALL_GATHER(everyone, tensor.contiguous())
        return everyone

    def broadcast(self, tensors: Iterable[th.Tensor]) -> None:
        """As :meth:`Ranks.broadcast`."""
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)

    def mean(self, tensor: th.Tensor) -> th.Tensor:
        """As :meth:`Ranks.mean`."""
        dist.all_reduce(tensor)
        return tensor / self.size

    # ---- files that every rank has ----

    def file(self, path: Any) -> Any:
        """As :meth:`Ranks.file`: ``replay.pkl`` is the main rank's, ``replay_rank1.pkl`` that of rank 1."""
        if self.is_main or isinstance(path, io.IOBase):
            return path
        path = Path(path)
        return path.with_name(f"{path.stem}_rank{self.rank}{path.suffix}")

    def request_buffer_save(self, path: Any) -> None:
        """As :meth:`Ranks.request_buffer_save`, after the rollout. A file object that is open belongs to one rank alone."""
        if self.is_main and self.is_learning and not isinstance(path, io.IOBase):
            self._buffer_paths.append(str(path))

    def random_states(self) -> dict[str, Any]:
        """:return: of all generators of this rank, to be kept with its rows"""
        states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}
        if th.cuda.is_available():
            states["cuda"] = th.cuda.get_rng_state()
        return states

    def restore_random_states(self, states: dict[str, Any] | None) -> None:
        """As :meth:`Ranks.restore_random_states`."""
        if states is None:
            return
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        th.set_rng_state(states["torch"])
        if "cuda" in states and th.cuda.is_available():
            th.cuda.set_rng_state(states["cuda"])


def flatten(callback: MaybeCallback) -> list[BaseCallback]:
    """
    :param callback: as a user gives it: nothing, a callback, a function, or lists of these
    :return: single callbacks; a function keeps what it says about ``all_ranks``
    """
    if callback is None:
        return []
    if type(callback) is CallbackList:  # one of a class of its own may do more than call its parts
        return flatten(callback.callbacks)
    if isinstance(callback, list):
        return [one for part in callback for one in flatten(part)]
    if isinstance(callback, BaseCallback):
        return [callback]
    converted = ConvertCallback(callback)
    converted.all_ranks = getattr(callback, "all_ranks", False)  # type: ignore[attr-defined]
    return [converted]


def draw_all_ranks_steps(bar: ProgressBarCallback, n_ranks: int) -> bool:
    """A progress bar's step: the total that it draws against counts the steps of all ranks."""
    bar.pbar.update(bar.training_env.num_envs * n_ranks)
    return True


def to_sums(statistics: RunningMeanStd) -> np.ndarray:
    """:return: what adds up over ranks: count, sum and sum of squares, each flat (1 + 2 n,)"""
    mean, square = np.ravel(statistics.mean), np.ravel(statistics.var + np.square(statistics.mean))
    return np.concatenate([[1.0], mean, square]).astype(np.float64) * statistics.count


def from_sums(statistics: RunningMeanStd, sums: np.ndarray) -> None:
    """
    :param statistics: changed in place
    :param sums: from :func:`to_sums`
    """
    shape, count = statistics.mean.shape, sums[0]
    mean, square = (part.reshape(shape) / count for part in np.split(sums[1:], 2))
    statistics.mean, statistics.var, statistics.count = mean, square - np.square(mean), float(count)
