"""Means of metrics over updates, and the duration of an update."""

import math
import time

import torch as th
from stable_baselines3.common.logger import Logger


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
