"""The log files that SB3 writes, one set for all ranks: on the other ranks its writers are replaced by silent ones."""

import os
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common.logger import KVWriter
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import SubprocVecEnv


class NoWriter(KVWriter):
    """Takes the place of a log that the main rank writes."""

    def write(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def leave_files_to_main_rank() -> None:
    """From now on Monitor and SB3's logger write nothing on this rank, nor in the processes of its ``SubprocVecEnv``."""
    start_workers = SubprocVecEnv.__init__

    def open_nothing(self: ResultsWriter, *_: Any, **__: Any) -> None:
        self.file_handler = open(os.devnull, "w")
        self.logger = None  # type: ignore[assignment]  # without it no row is written

    @wraps(start_workers)
    def start_silent_workers(self: SubprocVecEnv, env_fns: list[Callable[[], Any]], *args: Any, **kwargs: Any) -> None:
        start_workers(self, [partial(call, function) for function in env_fns], *args, **kwargs)

    ResultsWriter.__init__ = open_nothing  # type: ignore[method-assign]
    SubprocVecEnv.__init__ = start_silent_workers  # type: ignore[method-assign]
    sb3_logger.make_output_format = lambda *_, **__: NoWriter()


def call(function: Callable[[], Any]) -> Any:
    """
    Call it. A worker that unpickles this function imports the package, which replaces the writers in the worker, too.

    :param function: makes an environment
    :return: what it returns
    """
    return function()
