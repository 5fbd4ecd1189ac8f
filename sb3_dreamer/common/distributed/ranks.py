"""Interface of the training loop to the processes that train one model together (ranks), and the case of a single process."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecNormalize

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class RankLostError(RuntimeError):
    """Another rank has ended."""


class Agreement(NamedTuple):
    """
    Result of synchronising the ranks after a rollout: steps of all ranks together, whether to continue, whether all ranks
    can sample windows, replay files to write, and whether a rank has changed a setting.
    """

    n_steps: int
    goes_on: bool
    can_sample: bool
    buffer_paths: list[str]
    has_changes: bool = False


class Ranks:
    """A single process. Most methods do nothing."""

    rank, size, is_main, is_launched = 0, 1, True, False
    n_rollouts = 0  # calls of `sync_rollout`

    def device(self, device: th.device | str) -> th.device | str:
        """
        :param device: device given by the user
        :return: device of this rank
        """
        return device

    def seed(self, seed: int | None) -> int | None:
        """
        :param seed: seed of the run
        :return: seed of this rank
        """
        return seed

    def silence(self, model: "BaseAlgorithm") -> None:
        """:param model: a model that should only log and print on the main rank"""

    def callback(self, callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
        """
        :param callback: callback of the user
        :param progress_bar: whether the user wants a progress bar
        :return: callback and progress bar of this rank
        """
        return callback, progress_bar

    @contextmanager
    def learning(self, facts: dict[str, Any]) -> Iterator[None]:  # noqa: ARG002
        """
        Context for ``learn``.

        :param facts: values that must be equal on all ranks
        :raises ValueError: if they are not
        """
        yield

    def sync_rollout(self, n_steps: int, goes_on: bool, can_sample: bool, has_changes: bool = False) -> Agreement:
        """
        Synchronise the ranks after a rollout.

        :param n_steps: environment steps of this rank
        :param goes_on: whether this rank continues, because no callback has stopped it
        :param can_sample: whether the buffer of this rank holds a window
        :param has_changes: whether a callback of this rank has changed a setting
        :return: the result for all ranks
        """
        return Agreement(n_steps, goes_on, can_sample, [], has_changes)

    def check_equal(self, facts: dict[str, Any], hint: str = "") -> None:
        """
        :param facts: values that must be equal on all ranks
        :param hint: end of the error message
        :raises ValueError: on all ranks, if they are not equal
        """

    def exchange(self, value: Any) -> list[Any]:
        """
        Also waits until all ranks have called it.

        :param value: plain data
        :return: the values of all ranks
        """
        return [value]

    def merge_statistics(self, vec_normalize: VecNormalize | None) -> None:
        """:param vec_normalize: its statistics are replaced by those over all ranks"""

    def gather(self, tensor: th.Tensor, out: th.Tensor | None = None) -> th.Tensor:  # noqa: ARG002
        """
        :param tensor: of this rank (N, ...)
        :param out: where to write the result; None: a new tensor
        :return: the tensors of all ranks, concatenated along the first axis
        """
        return tensor

    def broadcast(self, tensors: Iterable[th.Tensor]) -> None:
        """:param tensors: overwritten by those of the main rank"""

    def mean(self, tensor: th.Tensor) -> th.Tensor:
        """:return: mean over all ranks"""
        return tensor

    def mean_(self, tensor: th.Tensor) -> None:
        """:param tensor: replaced by its mean over all ranks"""

    def any(self, flag: bool) -> bool:
        """:return: whether the flag is set on any rank"""
        return flag

    def file(self, path: Any) -> Any:
        """
        :param path: path of a file that each rank has
        :return: path of the file of this rank
        """
        return path

    def request_buffer_save(self, path: Any) -> None:
        """:param path: file to which the main rank has just saved its replay buffer; the other ranks will save theirs, too"""

    def shared_paths(self) -> list[str]:
        """:return: paths passed to :meth:`request_buffer_save` since the last call"""
        return []

    def save_follower_buffers(self, paths: list[str], save: Callable[[str], None]) -> None:
        """
        Save the replay buffers requested by :meth:`request_buffer_save`, and wait for all ranks.

        :param paths: files of the main rank
        :param save: saves the buffer of this rank
        """

    def random_states(self) -> dict[str, Any] | None:
        """:return: states of the random generators, to be saved with the replay buffer; None: do not save them"""
        return None

    def restore_random_states(self, states: dict[str, Any] | None) -> None:
        """:param states: from :meth:`random_states`; ignored in a single process"""

    def main_saves(self, save: Callable[[Any], None], path: Any, progress: tuple[int, int]) -> None:  # noqa: ARG002
        """
        Save a file on the main rank only. The file exists when this returns.

        :param save: saves to a path
        :param path: path of the file
        :param progress: environment steps and updates of the saved model
        """
        save(path)
