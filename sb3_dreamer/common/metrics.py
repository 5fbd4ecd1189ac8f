"""Means of metrics over updates, and the duration of an update."""

import math
import time

import torch as th
from stable_baselines3.common.logger import Logger


class UpdateClock:
    """Measures the duration of an update once, as the mean over updates two to five. The first update is a warm-up."""

    LAST = 5

    def __init__(self) -> None:
        self.n_updates = 0
        self._seconds = 0.0
        self._start = 0.0

    def start(self) -> None:
        """Call before an update."""
        self._start = time.perf_counter()

    def stop(self) -> float | None:
        """
        Call after an update.

        :return: mean seconds per update after the fifth update, otherwise None
        """
        self.n_updates += 1
        if 1 < self.n_updates <= self.LAST:
            self._seconds += time.perf_counter() - self._start
        return self._seconds / (self.LAST - 1) if self.n_updates == self.LAST else None

    def message(self, seconds: float, updates_left: int, device: th.device) -> str:
        """:return: a line with the duration of an update and of this ``learn``, and how to shorten it"""
        n_updates = self.n_updates + updates_left
        return (
            f"{seconds:.3g} s per update, about {n_updates} updates in this learn(): about {seconds * n_updates / 60:.1f} "
            f"min on {device}, the environment's time not counted. Shorter: a smaller `model_size`, a lower "
            "`training_ratio`, a faster `device`."
        )


class UnstableTrainingError(ValueError):
    """A loss became NaN or infinite. It is a ``ValueError``, so that RL Zoo's hyperparameter search prunes the trial."""


class MetricAverager:
    """Means of metrics over updates. Sums stay on the device and are copied to the host by :meth:`means`."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: th.Tensor | None = None
        self.count = 0  # updates since the last flush

    def add(self, names: tuple[str, ...], values: th.Tensor) -> None:
        """
        Add the metrics of one update.

        :param names: names of the metrics, the same for each update
        :param values: one value for each name (M,)
        """
        self._names = names
        self._sums = values.clone() if self._sums is None else self._sums + values
        self.count += 1

    def means(self) -> dict[str, float]:
        """:return: means since the last flush, empty if nothing was added"""
        if self._sums is None:
            return {}
        return dict(zip(self._names, (self._sums / self.count).tolist(), strict=True))

    def record(self, logger: Logger) -> dict[str, float]:
        """
        Record the means since the last flush.

        :param logger: logger to record to
        :return: the means
        :raises UnstableTrainingError: if a mean is not finite
        """
        means = self.means()
        for name, value in means.items():
            logger.record(name, value)
            if not math.isfinite(value):
                self.flush()  # so that training can continue with a repaired model
                raise UnstableTrainingError(f"`{name}` became {value}: lower `learning_rate`, or use `precision='fp32'`")
        return means

    def flush(self) -> dict[str, float]:
        """:return: same as :meth:`means`. Afterwards the sums are zero."""
        means = self.means()
        self._sums, self.count = None, 0
        return means
