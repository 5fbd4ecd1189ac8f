"""Ranks started by torchrun: communication between them. Only imported if a launcher started this process."""

import atexit
import io
import os
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

from sb3_dreamer.common.distributed.ranks import Agreement, RankLostError, Ranks
from sb3_dreamer.common.random_states import get_random_states, set_random_states

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# The main rank may evaluate for hours while the others wait. A long timeout is fine, because launchers notice dead ranks.
COLLECTIVE_TIMEOUT = timedelta(days=7)
SAVE_TIMEOUT = timedelta(minutes=2)
SEEDS_BETWEEN_RANKS = 1000
# Grace period so that the launcher, which polls ten times per second, reports the first failure.
FAILURE_GRACE_SECONDS = 1.0
# Renamed in torch 2.13.
ALL_GATHER = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


@lru_cache
def agreement_group() -> Any:
    """:return: process group to synchronise the ranks, shared by all models of a process"""
    return dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def report_uncaught(show: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """
    Replacement of ``sys.excepthook``, so that torchrun's report shows the exception that ended a rank.

    :param show: the previous hook
    :param kind: class of the exception
    :param error: the exception
    :param trace: its traceback
    """
    if isinstance(error, Exception) and not isinstance(error, RankLostError):
        try:
            raise error.with_traceback(trace)  # only an exception that is being handled can be recorded
        except Exception:
            get_error_handler().record_exception(error)
    show(kind, error, trace)


class ManyRanks(Ranks):
    """
    The ranks of a launcher. Collectives of tensors use torch's default group (NCCL on CUDA, gloo on a CPU). Synchronisation
    once per rollout uses a separate gloo group, whose timeout is long enough for an evaluation on the main rank.

    All methods except :meth:`device`, :meth:`silence`, :meth:`callback` and :meth:`file` must be called on all ranks, in the
    same order.
    """

    is_launched = True
    has_failed = False  # whether any model of this process has failed
    reports = False  # whether the excepthook is installed

    def __init__(self) -> None:
        if not dist.is_initialized():
            if th.cuda.is_available():
                th.cuda.set_device(self.local_rank % th.cuda.device_count())
            # A store of its own for each start: after a restart by torchrun, the store still has the addresses of dead ranks.
            store, rank, size = next(dist.rendezvous("env://"))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=size)
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
        # After an error, other ranks may have ended. Destroying the group would wait for them and hide the end of this rank.
        if not ManyRanks.has_failed and not hasattr(sys, "last_value") and dist.is_initialized():
            dist.destroy_process_group()

    def device(self, device: th.device | str) -> th.device | str:
        """
        See :meth:`Ranks.device`. Each rank of a machine has its own GPU.

        :raises ValueError: if ``device`` names another GPU by its index, or if there are fewer GPUs than ranks
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
        """See :meth:`Ranks.seed`. Seeds are 1000 apart. Without a seed each rank draws one, so that environments differ."""
        if self.size == 1:
            return seed
        if seed is None:
            return int.from_bytes(os.urandom(4), "big")
        return seed + SEEDS_BETWEEN_RANKS * self.rank

    def share(self, value: Any) -> Any:
        """:return: the value of the main rank, on all ranks"""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.agreement_group)
        return values[0]

    # ---- only on the main rank ----

    def silence(self, model: "BaseAlgorithm") -> None:
        """See :meth:`Ranks.silence`."""
        if not self.is_main:
            model.verbose, model.tensorboard_log = 0, None
            model.set_logger(Logger(None, []))

    def callback(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """See :meth:`Ranks.callback`. Other ranks than the main rank only run callbacks with ``all_ranks = True``."""
        callbacks = flatten(callback)
        if not self.is_main:
            callbacks = [one for one in callbacks if getattr(one, "all_ranks", False)]
        for one in callbacks:
            if isinstance(one, ProgressBarCallback):  # changed in place: RL Zoo keeps its bar and closes it
                one._on_step = partial(draw_all_ranks_steps, one, self.size)  # type: ignore[method-assign]
        return callbacks, progress_bar and self.is_main

    def main_saves(self, save: Callable[[Any], None], path: Any, progress: tuple[int, int]) -> None:
        """
        See :meth:`Ranks.main_saves`. It uses no collective, because scripts, and callbacks in ``learn``, may save on the
        main rank only. If the main rank saves to another path, the other ranks stop waiting after a timeout and warn.
        """
        if isinstance(path, io.IOBase):
            if self.is_main:
                save(path)
            return
        if self.is_main:
            save(path)  # atomic: other ranks may be reading the previous file
        if self.is_learning or not dist.is_initialized():
            return
        key, store = f"saved {path} after {progress}", _get_default_store()
        if self.is_main:
            store.set(key, "")
            return
        try:
            store.wait([key], SAVE_TIMEOUT)
        except RuntimeError:
            warnings.warn(f"The main rank has not saved {path} within {SAVE_TIMEOUT.seconds} s, and other ranks do not save")

    # ---- collectives ----

    @contextmanager
    def learning(self, facts: dict[str, Any]) -> Iterator[None]:
        """
        See :meth:`Ranks.learning`. The launcher reports the first error of all ranks.

        :raises ValueError: if a fact differs between ranks
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
                    f"Rank {self.rank} ends because another rank has ended or is out of reach: see the error of that rank"
                )
                raise RankLostError(message) from error
            raise
        finally:
            self.is_learning = False

    def check_equal(self, facts: dict[str, Any], hint: str = "") -> None:
        """See :meth:`Ranks.check_equal`."""
        everyone = self.exchange(facts)
        for name in facts:
            values = [theirs[name] for theirs in everyone]
            if any(value != values[0] for value in values):
                raise ValueError(f"`{name}` must be the same on all ranks, got {values}{hint}")

    def exchange(self, value: Any) -> list[Any]:
        """See :meth:`Ranks.exchange`."""
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value, group=self.agreement_group)
        return everyone

    def sync_rollout(self, n_steps: int, goes_on: bool, can_sample: bool, has_changes: bool = False) -> Agreement:
        """See :meth:`Ranks.sync_rollout`. It is one small all-reduce."""
        mine = [n_steps, int(not goes_on), int(not can_sample), len(self._buffer_paths), int(has_changes)]
        sums = th.tensor(mine)  # (5,)
        dist.all_reduce(sums, group=self.agreement_group)
        total, stops, empty, n_paths, n_changed = sums.tolist()
        self.n_rollouts += 1
        return Agreement(total, stops == 0, empty == 0, self.shared_paths() if n_paths else [], n_changed > 0)

    def shared_paths(self) -> list[str]:
        """See :meth:`Ranks.shared_paths`."""
        paths, self._buffer_paths = self.share(self._buffer_paths), []
        return list(paths)

    def save_follower_buffers(self, paths: list[str], save: Callable[[str], None]) -> None:
        """See :meth:`Ranks.save_follower_buffers`. The barrier has a long timeout, because large buffers take long to save."""
        for path in paths:
            if not self.is_main:
                save(path)
        if paths:
            dist.barrier(group=self.agreement_group)

    def merge_statistics(self, vec_normalize: VecNormalize | None) -> None:
        """See :meth:`Ranks.merge_statistics`. Counts and moments since the last call are summed over the ranks."""
        if vec_normalize is None:
            return
        observations = getattr(vec_normalize, "obs_rms", {})
        statistics = [*(observations.values() if isinstance(observations, dict) else [observations]), vec_normalize.ret_rms]
        sums = [to_sums(one) for one in statistics]
        if self._merged is None or self._merged[0] is not vec_normalize:
            merged = self.share(sums)  # all ranks start with those of the main rank
        else:
            news = [th.from_numpy(mine - old) for mine, old in zip(sums, self._merged[1], strict=True)]
            for part in news:
                dist.all_reduce(part, group=self.agreement_group)
            merged = [old + part.numpy() for old, part in zip(self._merged[1], news, strict=True)]
        for one, part in zip(statistics, merged, strict=True):
            from_sums(one, part)
        self._merged = vec_normalize, [to_sums(one) for one in statistics]

    def gather(self, tensor: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`Ranks.gather`."""
        everyone = tensor.new_empty(self.size * tensor.shape[0], *tensor.shape[1:]) if out is None else out
        ALL_GATHER(everyone, tensor.detach().contiguous())
        return everyone

    def broadcast(self, tensors: Iterable[th.Tensor]) -> None:
        """See :meth:`Ranks.broadcast`."""
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)

    def mean(self, tensor: th.Tensor) -> th.Tensor:
        """See :meth:`Ranks.mean`."""
        total = tensor.clone()
        self.mean_(total)
        return total

    def mean_(self, tensor: th.Tensor) -> None:
        """See :meth:`Ranks.mean_`."""
        dist.all_reduce(tensor)
        tensor.div_(self.size)

    def any(self, flag: bool) -> bool:
        """See :meth:`Ranks.any`. It is one small all-reduce in the group with the long timeout."""
        count = th.tensor(int(flag))
        dist.all_reduce(count, group=self.agreement_group)
        return bool(count)

    # ---- files of each rank ----

    def file(self, path: Any) -> Any:
        """See :meth:`Ranks.file`. ``replay.pkl`` belongs to the main rank, ``replay_rank1.pkl`` to rank 1."""
        if self.is_main or isinstance(path, io.IOBase):
            return path
        path = Path(path)
        return path.with_name(f"{path.stem}_rank{self.rank}{path.suffix}")

    def request_buffer_save(self, path: Any) -> None:
        """See :meth:`Ranks.request_buffer_save`. Open file objects are ignored, because they belong to one rank only."""
        if self.is_main and self.is_learning and not isinstance(path, io.IOBase):
            self._buffer_paths.append(str(path))

    @staticmethod
    def _cuda_device() -> th.device | None:
        return th.device("cuda", th.cuda.current_device()) if th.cuda.is_available() else None

    def random_states(self) -> dict[str, Any]:
        """:return: states of all random generators of this rank, to be saved with its replay buffer"""
        return get_random_states(self._cuda_device())

    def restore_random_states(self, states: dict[str, Any] | None) -> None:
        """See :meth:`Ranks.restore_random_states`."""
        if states is not None:
            set_random_states(states, self._cuda_device())


def flatten(callback: MaybeCallback) -> list[BaseCallback]:
    """
    :param callback: callback argument of a user: None, a callback, a function, or a list of these
    :return: flat list of callbacks; a function keeps its attribute ``all_ranks``
    """
    if callback is None:
        return []
    if type(callback) is CallbackList:  # a subclass may do more than call its callbacks
        return flatten(callback.callbacks)
    if isinstance(callback, list):
        return [one for part in callback for one in flatten(part)]
    if isinstance(callback, BaseCallback):
        return [callback]
    converted = ConvertCallback(callback)
    converted.all_ranks = getattr(callback, "all_ranks", False)  # type: ignore[attr-defined]
    return [converted]


def draw_all_ranks_steps(bar: ProgressBarCallback, n_ranks: int) -> bool:
    """Replacement of the progress bar's ``_on_step``, because its total counts the steps of all ranks."""
    bar.pbar.update(bar.training_env.num_envs * n_ranks)
    return True


def to_sums(statistics: RunningMeanStd) -> np.ndarray:
    """:return: values that can be summed over ranks: count, sum and sum of squares, flattened (1 + 2 n,)"""
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
