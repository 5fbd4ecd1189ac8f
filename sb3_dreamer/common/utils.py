"""Small helpers of the training loop: learning-rate warm-up, the training ratio's account, averages of metrics."""

import math
import time
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule


class PiecewiseSchedule:
    """
    Linear between points, constant before the first and after the last: for instance to prime a run with a low rate.

    :param points: (environment step, value), steps increasing
    :raises ValueError: if the points are not such a list
    """

    def __init__(self, points: Sequence[tuple[float, float]]):
        array = np.asarray(points, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] != 2 or np.any(np.diff(array[:, 0]) <= 0) or np.any(array[:, 1] < 0):
            raise ValueError(
                "`learning_rate` as a list must hold (environment step, value) pairs with increasing steps and no "
                f"negative value, got {points!r}"
            )
        self.steps, self.values = array.T

    def __call__(self, step: float) -> float:
        """
        :param step: environment steps so far
        :return: value there
        """
        return float(np.interp(step, self.steps, self.values))


def make_schedule(learning_rate: float | Schedule | list[tuple[float, float]]) -> Schedule:
    """
    :param learning_rate: as a user gives it
    :return: SB3's schedule over the remaining progress, or for a list a :class:`PiecewiseSchedule` over steps
    :raises ValueError: if it is none of these, or negative
    """
    if isinstance(learning_rate, list):
        return PiecewiseSchedule(learning_rate)
    is_number = isinstance(learning_rate, Real) and not isinstance(learning_rate, bool)
    if not callable(learning_rate) and not (is_number and 0 <= learning_rate < float("inf")):
        raise ValueError(
            "`learning_rate` must be a number of at least 0, a function of the remaining progress, or a list of "
            f"(environment step, value) pairs, got {learning_rate!r}"
        )
    return FloatSchedule(learning_rate)


def warmup_factor(n_updates: int, warmup_steps: int) -> float:
    """
    Linear warm-up of the learning rate. The first update has factor 0, as in the official code.

    :param n_updates: updates made so far
    :param warmup_steps: updates until the factor is 1; 0 switches the warm-up off
    :return: factor in [0, 1]
    """
    return 1.0 if warmup_steps == 0 else min(1.0, n_updates / warmup_steps)


class TrainRatio:
    """
    Account of updates owed: each environment step adds the ratio's share of an update, exactly.

    The account opens at the first moment at which training is possible, with one update and no more: the steps before
    count for nothing.
    """

    steps_per_update = 0  # not in files of older versions

    def __init__(self) -> None:
        self.updates_per_step = Fraction(0)
        self.owed = Fraction(0)
        self.is_open = False

    def set_rate(self, ratio: float, steps_per_update: int) -> None:
        """
        :param ratio: replayed (trained) time steps per environment step
        :param steps_per_update: time steps that one update trains, batch size times batch length
        """
        if self.steps_per_update:
            self.owed *= Fraction(self.steps_per_update, steps_per_update)  # the debt is one of time steps
        self.steps_per_update = steps_per_update
        # Read as it is written: 0.1 is a tenth here, not the nearest binary fraction.
        self.updates_per_step = Fraction(str(ratio)) / steps_per_update

    def tick(self, n_steps: int, can_train: bool) -> int:
        """
        :param n_steps: environment steps since the last call, over all environments
        :param can_train: whether an update is possible now
        :return: whole updates owed now
        """
        if not can_train:
            self.close()
        elif self.is_open:
            self.owed += n_steps * self.updates_per_step
        else:
            self.is_open, self.owed = True, Fraction(1)
        return int(self.owed)

    def close(self) -> None:
        """Forget the debt; the next moment at which training is possible opens the account anew."""
        self.is_open, self.owed = False, Fraction(0)

    def pay(self) -> None:
        """Book one update. An update beyond the debt, asked for by hand, is a gift."""
        if self.owed >= 1:
            self.owed -= 1

    def updates_in(self, n_steps: int) -> int:
        """:return: whole updates owed after so many more environment steps"""
        return int(self.owed + n_steps * self.updates_per_step)


class UpdateClock:
    """Measures the time of an update once, over the second to the fifth: the first one warms up."""

    LAST = 5

    def __init__(self) -> None:
        self.n_updates = 0
        self._seconds = 0.0
        self._start = 0.0

    def start(self) -> None:
        """An update begins."""
        self._start = time.perf_counter()

    def stop(self) -> float | None:
        """
        An update ends.

        :return: mean seconds per update after the fifth one, else None
        """
        self.n_updates += 1
        if 1 < self.n_updates <= self.LAST:
            self._seconds += time.perf_counter() - self._start
        return self._seconds / (self.LAST - 1) if self.n_updates == self.LAST else None

    def message(self, seconds: float, updates_left: int, device: th.device) -> str:
        """:return: one line: how long an update takes, how long all of this ``learn`` will, and what shortens it"""
        n_updates = self.n_updates + updates_left
        return (
            f"{seconds:.3g} s per update, about {n_updates} updates in this learn(): about {seconds * n_updates / 60:.1f} "
            f"min on {device}, the environment's time not counted. Shorter: a smaller `model_size`, a lower "
            "`training_ratio`, a faster `device`."
        )


class UnstableTrainingError(ValueError):
    """A loss became NaN or infinite. A ``ValueError``, so that RL Zoo's hyperparameter search prunes the trial."""


class MetricAverager:
    """Means of metrics over updates. Sums stay on the device until :meth:`flush`, which synchronises once."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: th.Tensor | None = None
        self.count = 0  # updates since the last flush

    def add(self, names: tuple[str, ...], values: th.Tensor) -> None:
        """
        :param names: of the metrics, the same each time
        :param values: one for each name (M,)
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
        :param logger: gets the means since the last flush
        :return: these means
        :raises UnstableTrainingError: if one is not finite
        """
        means = self.means()
        for name, value in means.items():
            logger.record(name, value)
            if not math.isfinite(value):
                self.flush()  # whoever mends the model starts anew
                raise UnstableTrainingError(f"`{name}` became {value}: lower `learning_rate`, or use `precision='fp32'`")
        return means

    def flush(self) -> dict[str, float]:
        """:return: as :meth:`means`, and start anew"""
        means = self.means()
        self._sums, self.count = None, 0
        return means
