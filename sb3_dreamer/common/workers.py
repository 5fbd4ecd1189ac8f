"""Processes of a ``SubprocVecEnv`` that are watched, so that a dead one is an error and not a wait without end."""

import signal
import time
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

POLL_SECONDS = 1.0  # between two looks at a worker that has not answered yet
CLOSE_SECONDS = 5.0  # for the other workers to close their environments


class WorkerError(EOFError):
    """A worker has died. As SB3's own error where it notices, this is an ``EOFError``, which RL Zoo expects from ``close``."""


class WatchedConnection:
    """
    Connection to a worker that raises an error if the worker has died. A plain one may wait forever: with the start method
    ``fork``, other workers hold copies of its other end, and ``SubprocVecEnv.close`` waits for answers that were read before.

    :param env: environments
    :param index: number of the worker
    """

    def __init__(self, env: SubprocVecEnv, index: int):
        self._env, self._index = env, index
        self._connection, self._process = env.remotes[index], env.processes[index]

    def recv(self) -> Any:
        """
        :return: the answer of the worker
        :raises WorkerError: if it has died
        """
        try:
            while not self._connection.poll(POLL_SECONDS):
                if not self._process.is_alive() and not self._connection.poll():
                    raise EOFError
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._close_all() from error

    def send(self, command: Any) -> None:
        """
        :param command: as SB3's
        :raises WorkerError: if the worker has died
        """
        try:
            self._connection.send(command)
        except ConnectionError as error:
            raise self._close_all() from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def _close_all(self) -> WorkerError:
        """
        Close the other workers, so that ``SubprocVecEnv.close`` has nothing to wait for.

        :return: the error to raise
        """
        end = time.monotonic() + CLOSE_SECONDS
        others = [process for process in self._env.processes if process is not self._process]
        for remote in self._env.remotes:
            try:
                getattr(remote, "_connection", remote).send(("close", None))
            except (OSError, ValueError):
                pass  # dead as well
            remote.close()
        for process in (self._process, *others):
            process.join(max(0.0, end - time.monotonic()))
            process.terminate()
        self._env.waiting, self._env.closed = False, True
        code = self._process.exitcode
        if code is not None and code < 0:
            reason = f"was killed by {signal.Signals(-code).name}" + (
                ", perhaps for memory" if code == -signal.SIGKILL else ""
            )
        else:
            reason = f"ended with exit code {code}" + (", after an error that it has printed" if code else "")
        return WorkerError(f"Worker {self._index} of SubprocVecEnv (process {self._process.pid}) {reason}; all are closed now")


def watch_workers(env: VecEnv) -> VecEnv:
    """
    :param env: environments; if they are not those of a ``SubprocVecEnv``, nothing is done
    :return: the same environments, which raise :class:`WorkerError` within seconds if one of their processes has died
    """
    inner = env
    while isinstance(inner, VecEnvWrapper):
        inner = inner.venv
    if isinstance(inner, SubprocVecEnv) and not isinstance(inner.remotes[0], WatchedConnection):
        inner.remotes = tuple(WatchedConnection(inner, index) for index in range(len(inner.remotes)))
    return env
