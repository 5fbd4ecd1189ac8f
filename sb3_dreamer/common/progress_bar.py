"""The progress bar of ``learn(progress_bar=True)``."""

import time

from stable_baselines3.common.callbacks import ProgressBarCallback


class UpdateProgressBar(ProgressBarCallback):
    """
    SB3's progress bar, over the steps of all ranks, with the updates per second since the start of ``learn``.

    :param n_ranks: processes that train together
    """

    def __init__(self, n_ranks: int = 1):
        super().__init__()
        self.n_ranks = n_ranks

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self.since, self.n_updates_before = time.perf_counter(), self.model._n_updates

    def _on_step(self) -> bool:
        seconds = time.perf_counter() - self.since
        rate = (self.model._n_updates - self.n_updates_before) / max(seconds, 1e-9)
        # Not the postfix: tqdm's bar for rich does not show it.
        self.pbar.set_description(f"{rate:.3g} updates/s", refresh=False)
        self.pbar.update(self.training_env.num_envs * self.n_ranks)
        return True
