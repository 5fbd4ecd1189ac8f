"""How long updates take, how fast training is, and where the time goes."""

import time

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_dreamer.common.type_aliases import SequenceIndices


class UpdateClock:
    """
    Measures the duration of an update once: as the mean over updates two to five, or by the second one if a run with such
    updates takes more than a day. The first update is a warm-up.
    """

    LAST = 5
    LONG_RUN = 86_400.0  # seconds

    def __init__(self) -> None:
        self.n_updates = 0
        self.is_done = False
        self._seconds = 0.0
        self._start = 0.0

    def start(self) -> None:
        """Call before an update."""
        self._start = time.perf_counter()

    def stop(self, updates_left: int) -> float | None:
        """
        Call after an update.

        :param updates_left: in this ``learn``
        :return: mean seconds per update once; otherwise None
        """
        self.n_updates += 1
        if self.is_done or self.n_updates == 1:
            return None
        self._seconds += time.perf_counter() - self._start
        mean = self._seconds / (self.n_updates - 1)
        if self.n_updates < self.LAST and mean * updates_left < self.LONG_RUN:
            return None
        self.is_done = True
        return mean

    def report(self, updates_left: int, device: th.device, verbose: int) -> None:
        """
        Call after an update; print the expected duration once.

        :param updates_left: in this ``learn``
        :param device: of the model
        :param verbose: 0 prints nothing
        """
        seconds = self.stop(updates_left)
        if seconds is not None and verbose >= 1:
            print(self.message(seconds, updates_left, device))

    def message(self, seconds: float, updates_left: int, device: th.device) -> str:
        """:return: a line with the duration of an update and of this ``learn``, and how to shorten it"""
        n_updates = self.n_updates + updates_left
        minutes = seconds * n_updates / 60
        duration = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} hours"
        duration = duration if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
        return (
            f"{seconds:.3g} s per update, about {n_updates} updates in this learn(): about {duration} on {device}, without "
            'the time of the environment. Shorter: the small setting (`DreamerV3(..., **preset("small"))`), a smaller '
            "`model_size`, a lower `training_ratio`, a faster `device`."
        )


class TrainingClock(UpdateClock):
    """
    Also measures what happened since the last log line: steps and updates per second, the training ratio that was reached,
    shares of time, and the age of the sampled windows. On CUDA, updates run while the host goes on, and their time appears
    where the host waits for them. A clock is made for each ``learn``; sums over windows go on, as means of metrics do.

    :param windows: sums over the windows since the last line, of the clock before
    """

    PARTS = ("environment", "acting", "update")

    def __init__(self, windows: dict[str, int] | None = None) -> None:
        super().__init__()
        self.windows = dict(n=0, n_new=0, age=0) if windows is None else windows
        self.begin(0)

    def begin(self, n_steps: int) -> None:
        """:param n_steps: environment steps so far, over all ranks"""
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self.part, self.since = "environment", time.perf_counter()
        self.n_steps, self.n_trained, self.n_made = n_steps, 0, 0  # steps at the last line; time steps and updates since

    def enter(self, part: str) -> None:
        """:param part: what is done from now on: acting, update, or environment (callbacks and storing included)"""
        now = time.perf_counter()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def add_update(self, indices: SequenceIndices, counts: np.ndarray, n_new: int, n_ranks: int) -> None:
        """
        :param indices: of the sampled windows
        :param counts: rows that each environment has stored so far (n_envs,)
        :param n_new: how many of the windows were sampled because they are new
        :param n_ranks: processes that train together
        """
        self.n_made += 1
        self.n_trained += n_ranks * indices.steps.size
        self.windows["n"] += len(indices.steps)
        self.windows["n_new"] += n_new
        self.windows["age"] += int((counts[indices.envs] - indices.steps[:, 0]).sum())

    def record(self, logger: Logger, n_steps: int) -> None:
        """
        Record what happened since the last line, and begin again.

        :param logger: logger
        :param n_steps: environment steps so far, over all ranks
        """
        part = self.part
        self.enter(part)
        total, steps = max(sum(self.seconds.values()), 1e-9), n_steps - self.n_steps
        if steps > 0:
            logger.record("time/steps_per_second", steps / total)
            logger.record("time/training_ratio", self.n_trained / steps)
        logger.record("time/updates_per_second", self.n_made / total)
        for name, seconds in self.seconds.items():
            logger.record(f"time/share_{name}", seconds / total)
        if n_windows := self.windows["n"]:
            logger.record("replay/age", self.windows["age"] / n_windows)
            logger.record("replay/share_new", self.windows["n_new"] / n_windows)
        self.windows = dict.fromkeys(self.windows, 0)
        self.begin(n_steps)
        self.part = part
