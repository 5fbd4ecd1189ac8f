"""What follows from the count of steps: the learning rate (schedules, warm-up, scaling with the ranks) and the updates due."""

from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

SCALINGS = ("sqrt", "linear", "sqrt+priming", "linear+priming", None)
# Priming: this share of the one-rank rate until here, then a line to the scaled rate.
PRIMING_SHARE, PRIMING_END, SCALED_FROM = 0.4, 0.05, 0.1


class PiecewiseSchedule:
    """
    Linear between points, constant before the first and after the last one.

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


def schedule_value(schedule: Schedule, num_timesteps: int, progress_remaining: float) -> float:
    """
    :param schedule: a function of the remaining progress, as in SB3, or a :class:`PiecewiseSchedule` of the steps
    :param num_timesteps: environment steps
    :param progress_remaining: from 1 to 0
    :return: value of the schedule
    """
    return schedule(num_timesteps if isinstance(schedule, PiecewiseSchedule) else progress_remaining)


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


def without_function(learning_rate: Any) -> Any:
    """
    :param learning_rate: as a user, or RL Zoo, gives it
    :return: the same rate as data that a checkpoint can hold, where it is one of the known functions; others unchanged
    """
    if type(learning_rate) is ConstantSchedule:
        return learning_rate.val
    if type(learning_rate).__name__ == "SimpleLinearSchedule":  # of RL Zoo, which is not imported here
        return LinearSchedule(learning_rate.initial_value, 0.0, 1.0)
    return learning_rate


def warmup_factor(n_updates: int, warmup_steps: int) -> float:
    """
    Linear warm-up of the learning rate. The first update has factor 0, as in the official code.

    :param n_updates: updates made so far
    :param warmup_steps: updates until the factor is 1; 0 switches the warm-up off
    :return: factor in [0, 1]
    """
    return 1.0 if warmup_steps == 0 else min(1.0, n_updates / warmup_steps)


def lr_scaling_factor(scaling: str | None, n_ranks: int, progress: float) -> float:
    """
    Factor of the learning rate when ``n_ranks`` processes train, each with its own batch.

    .. code-block:: text

        "sqrt"              sqrt(n)          "linear"  n          None  1
        "...+priming"       0.4 for the first 5 % of the steps, then linear, from 10 % on as without priming

    :param scaling: one of :data:`SCALINGS`
    :param n_ranks: processes; with one the factor is 1
    :param progress: share of the run that is done, 0 to 1
    :return: factor
    """
    if scaling is None or n_ranks == 1:
        return 1.0
    rule, _, priming = scaling.partition("+")
    scaled = n_ranks**0.5 if rule == "sqrt" else float(n_ranks)
    if not priming:
        return scaled
    done = min(max((progress - PRIMING_END) / (SCALED_FROM - PRIMING_END), 0.0), 1.0)
    return PRIMING_SHARE + done * (scaled - PRIMING_SHARE)


class TrainRatio:
    """
    Counts the updates that are due, exactly: each environment step adds the fraction of an update that the ratio asks for.

    Counting starts with one update when training first becomes possible. Steps before that do not count.
    """

    steps_per_update = 0  # files of older versions lack it

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
            self.owed *= Fraction(self.steps_per_update, steps_per_update)  # the same number of time steps
        self.steps_per_update = steps_per_update
        # Read as written: 0.1 is exactly a tenth, not the nearest binary fraction.
        self.updates_per_step = Fraction(str(ratio)) / steps_per_update

    def add_steps(self, n_steps: int, can_train: bool) -> int:
        """
        :param n_steps: environment steps since the last call, over all environments
        :param can_train: whether an update is possible now
        :return: whole updates due now
        """
        if not can_train:
            self.reset()
        elif self.is_open:
            self.owed += n_steps * self.updates_per_step
        else:
            self.is_open, self.owed = True, Fraction(1)
        return int(self.owed)

    def reset(self) -> None:
        """Drop the updates due; counting starts again when training is possible."""
        self.is_open, self.owed = False, Fraction(0)

    def count_update(self) -> None:
        """Count one update as made. Updates that are not due, when a user calls ``train``, do not count."""
        if self.owed >= 1:
            self.owed -= 1

    def updates_in(self, n_steps: int) -> int:
        """:return: whole updates due after so many more environment steps"""
        return int(self.owed + n_steps * self.updates_per_step)
