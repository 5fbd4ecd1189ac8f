"""The progress bar shows the steps of all environments and the updates per second."""

import re

import pytest

from sb3_dreamer.common import progress_bar
from tests.support.helpers import counter_model


@pytest.mark.parametrize("users", ["none", "function", "list"])
def test_steps_and_updates_per_second(users, monkeypatch):
    bars, calls = [], []

    class Bar(progress_bar.UpdateProgressBar):
        def _on_training_end(self):
            seconds = progress_bar.time.perf_counter() - self.since
            bars.append((self.pbar.n, self.pbar.total, self.pbar.desc, seconds))
            super()._on_training_end()

    def count(locals_, globals_):
        calls.append(1)
        return True

    monkeypatch.setattr("sb3_dreamer.common.distributed.algorithm.UpdateProgressBar", Bar)
    model = counter_model()
    model.learn(30, progress_bar=True)
    n_before = model._n_updates
    callback = {"none": None, "function": count, "list": []}[users]
    model.learn(60, callback=callback, reset_num_timesteps=False, progress_bar=True)
    assert len(calls) == (20 if users == "function" else 0)
    assert [(n, total) for n, total, _, _ in bars] == [(30, 30), (60, 60)]
    shown = float(re.fullmatch(r"(\S+) updates/s(: )?", bars[-1][2]).group(1))
    assert shown == pytest.approx((model._n_updates - n_before) / bars[-1][3], rel=0.5) and shown > 0
