"""Means of metrics over updates, and updates that were skipped."""

import math
from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common.logger import HumanOutputFormat, Logger

from sb3_dreamer.common.save_util import save_arrays


def show_whole_keys(logger: Logger, keys: Iterable[str]) -> None:
    """
    Make tables of the terminal and of text files wide enough. SB3 cuts names of metrics after 36 characters, and raises an
    error if two of them are equal then.

    :param logger: logger
    :param keys: of the observations; some metrics end with one
    """
    for output in logger.output_formats:
        if isinstance(output, HumanOutputFormat):
            output.max_length = max(output.max_length, 36 + max(map(len, keys), default=0))


class UnstableTrainingError(ValueError):
    """
    Losses or gradients stay NaN or infinite. It is a ``ValueError``, so that RL Zoo's hyperparameter search prunes the trial.
    """


class MetricAverager:
    """
    Means of metrics over updates. Updates that were skipped are counted, and left out of the means. Sums and counts stay on
    the device and are copied to the host by :meth:`record`, at once.
    """

    # So many skipped updates in a row are an error.
    MAX_SKIPPED = 10

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: th.Tensor | None = None  # over the updates that were made (M,)
        self._n_made: th.Tensor | None = None  # how many these are, a scalar
        self._n_in_a_row: th.Tensor | None = None  # updates that were skipped since the last one that was made, a scalar
        self._last: tuple[th.Tensor, Any] | None = None  # metrics and batch of the last update
        self.count = 0  # updates since the last flush, those that were skipped included

    def add(self, names: tuple[str, ...], values: th.Tensor, is_made: th.Tensor | None = None, batch: Any = None) -> None:
        """
        Add the metrics of one update.

        :param names: names of the metrics, the same for each update
        :param values: one value for each name (M,)
        :param is_made: False if the update was skipped, a bool on the device; None: whether all values are finite
        :param batch: batch of the update, for the error after many skipped updates
        """
        is_made = values.isfinite().all() if is_made is None else is_made
        sums = values.new_zeros(values.shape) if self._sums is None else self._sums
        zero = is_made.new_zeros((), dtype=th.long)
        self._names, self._last = names, (values.clone(), batch)
        self._sums = th.where(is_made, sums + values, sums)
        self._n_made = (zero if self._n_made is None else self._n_made) + is_made
        self._n_in_a_row = th.where(is_made, zero, (zero if self._n_in_a_row is None else self._n_in_a_row) + 1)
        self.count += 1

    def means(self) -> dict[str, float]:
        """:return: means over the updates that were made since the last flush, empty if there is none"""
        return {} if self._sums is None else self._read()[0]

    def _read(self) -> tuple[dict[str, float], int, int]:
        """:return: means, number of updates that were made, and number that were skipped since the last one of these"""
        assert self._sums is not None and self._n_made is not None and self._n_in_a_row is not None
        counts = th.stack([self._n_made, self._n_in_a_row]).to(self._sums.dtype)  # exact up to 16 million
        *sums, n_made, n_in_a_row = th.cat([self._sums, counts]).tolist()  # the only copy to the host
        means = {name: value / n_made for name, value in zip(self._names, sums, strict=True)} if n_made else {}
        return means, int(n_made), int(n_in_a_row)

    def record(self, logger: Logger) -> dict[str, float]:
        """
        Record the means since the last flush, and the number of updates that were skipped since then.

        :param logger: logger to record to; a batch that leads to an error is saved to its folder
        :return: the means
        :raises UnstableTrainingError: if the last :attr:`MAX_SKIPPED` updates were skipped
        """
        if self._sums is None:
            return {}
        means, n_made, n_in_a_row = self._read()
        for name, value in means.items():
            logger.record(name, value)
        logger.record("train/skipped_updates", self.count - n_made)
        if n_in_a_row >= self.MAX_SKIPPED:
            message = self._explain_skipped(n_in_a_row, logger.get_dir())
            self.flush()  # so that training can continue
            self._n_in_a_row = None
            raise UnstableTrainingError(message)
        return means

    def _explain_skipped(self, n_in_a_row: int, folder: str | None) -> str:
        """:return: which metrics are not finite, what to do, and where the last batch has been saved"""
        assert self._last is not None
        values, batch = self._last
        wrong = {name: value for name, value in zip(self._names, values.tolist(), strict=True) if not math.isfinite(value)}
        # A loss says more than what is computed from it or leads to it.
        name, *others = sorted(wrong, key=lambda one: not one.endswith("_loss"))
        try:
            place = f"saved in {save_arrays(batch, 'skipped_batch_', folder)}, read it by `numpy.load`"
        except OSError as error:
            place = f"not saved: {error}"
        return (
            f"`{name}` became {wrong[name]}: lower `learning_rate`, use `precision='fp32'`, or look for extreme values in the "
            f"batch ({place}). The last {n_in_a_row} updates were skipped because of values that are not finite, and the "
            "model is as before them. In the last one these were not finite, too: "
            f"{', '.join(f'`{other}`' for other in others) or 'no others'}"
        )

    def flush(self) -> None:
        """Set the sums to zero."""
        self._sums, self._n_made, self._last, self.count = None, None, None, 0
