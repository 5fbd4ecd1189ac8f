"""When updates are due: replayed time steps per environment step."""

from fractions import Fraction


class TrainRatio:
    """
    Counts the updates that are due: each environment step adds the ratio's share of an update, exactly.

    Counting starts when training first becomes possible, with one update. Steps before that do not count.
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
            self.owed *= Fraction(self.steps_per_update, steps_per_update)  # what is due is counted in time steps
        self.steps_per_update = steps_per_update
        # Read as it is written: 0.1 is a tenth here, not the nearest binary fraction.
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
        """Forget the updates due; counting starts again when training is possible."""
        self.is_open, self.owed = False, Fraction(0)

    def count_update(self) -> None:
        """Count one update as made. Updates that were not due, from a call of ``train`` by hand, do not count."""
        if self.owed >= 1:
            self.owed -= 1

    def updates_in(self, n_steps: int) -> int:
        """:return: whole updates due after so many more environment steps"""
        return int(self.owed + n_steps * self.updates_per_step)
