"""The processes that train one model together, as the training loop sees them. By itself a process is one of one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecNormalize

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class Agreement(NamedTuple):
    """
    What holds for all ranks after a rollout: steps of all together, go on or not, windows on all, files to write, whether
    any has changed a setting.
    """

    n_steps: int
    goes_on: bool
    can_sample: bool
    buffer_paths: list[str]
    has_changes: bool = False


class Ranks:
    """A single process: every method does what one process needs, mostly nothing."""

    rank, size, is_main, is_launched = 0, 1, True, False

    def device(self, device: th.device | str) -> th.device | str:
        """
        :param device: as a user gives it
        :return: where this rank computes
        """
        return device

    def seed(self, seed: int | None) -> int | None:
        """
        :param seed: of the run
        :return: of this rank
        """
        return seed

    def silence(self, model: "BaseAlgorithm") -> None:
        """:param model: logs and prints nothing from now on, but on the main rank"""

    def callback(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """
        :param callback: a user's
        :param progress_bar: whether to draw one
        :return: both as they are to be on this rank
        """
        return callback, progress_bar

    @contextmanager
    def learning(self, facts: dict[str, Any]) -> Iterator[None]:  # noqa: ARG002
        """
        Around ``learn``.

        :param facts: must be equal on all ranks
        :raises ValueError: if they are not
        """
        yield

    def sync_rollout(self, n_steps: int, goes_on: bool, can_sample: bool, has_changes: bool = False) -> Agreement:
        """
        :param n_steps: environment steps of this rank
        :param goes_on: no callback of this rank has said stop
        :param can_sample: this rank's buffer holds a window
        :param has_changes: a callback of this rank has changed a setting
        :return: what holds for all
        """
        return Agreement(n_steps, goes_on, can_sample, [], has_changes)

    def check_equal(self, facts: dict[str, Any], hint: str = "") -> None:
        """
        :param facts: must be equal on all ranks
        :param hint: end of the message
        :raises ValueError: on all ranks, if they are not
        """

    def merge_statistics(self, vec_normalize: VecNormalize | None) -> None:
        """:param vec_normalize: gets the statistics of what all ranks have seen"""

    def gather(self, tensor: th.Tensor) -> th.Tensor:
        """:return: the tensors (N, ...) of all ranks, one after the other along the first axis"""
        return tensor

    def broadcast(self, tensors: Iterable[th.Tensor]) -> None:
        """:param tensors: become those of the main rank"""

    def mean(self, tensor: th.Tensor) -> th.Tensor:
        """:return: over all ranks"""
        return tensor

    def file(self, path: Any) -> Any:
        """
        :param path: of a file of which each rank has its own
        :return: of this rank's
        """
        return path

    def request_buffer_save(self, path: Any) -> None:
        """:param path: where the main rank has just written its replay buffer; the others write theirs, too"""

    def shared_paths(self) -> list[str]:
        """:return: what :meth:`request_buffer_save` has asked for since the last time"""
        return []

    def save_follower_buffers(self, paths: list[str], save: Callable[[str], None]) -> None:
        """
        Do what :meth:`request_buffer_save` asks, and wait until all have done so.

        :param paths: of the main rank's files
        :param save: writes this rank's
        """

    def random_states(self) -> dict[str, Any] | None:
        """:return: what a rank's replay file says of its random generators; None: nothing"""
        return None

    def restore_random_states(self, states: dict[str, Any] | None) -> None:
        """:param states: from :meth:`random_states`; a process by itself leaves its generators alone"""

    def main_saves(self, save: Callable[[Any], None], path: Any, progress: tuple[int, int]) -> None:  # noqa: ARG002
        """
        :param save: is called on the main rank only
        :param path: of the file, which is there when this returns
        :param progress: environment steps and updates of what is saved
        """
        save(path)
