"""Memory in the log."""

import psutil
import pytest
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_dreamer.common import memory


def recorded(device: str) -> dict[str, float]:
    logger = Logger(None, [])
    memory.record_memory(logger, th.device(device))
    return dict(logger.name_to_value)


def test_memory_of_the_process():
    before = recorded("cpu")
    assert before.keys() == {"memory/process_gb"}
    assert before["memory/process_gb"] == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.05)
    kept = th.ones(100_000_000)  # 0.4 GB
    assert recorded("cpu")["memory/process_gb"] - before["memory/process_gb"] == pytest.approx(0.4, abs=0.05)
    del kept


def test_without_psutil_and_on_a_gpu(monkeypatch):
    monkeypatch.setattr(memory, "psutil", None)
    monkeypatch.setattr(th.cuda, "max_memory_allocated", lambda device: 2_500_000_000 if device.index == 1 else 0)
    assert recorded("cpu") == {} and recorded("cuda:1") == {"memory/gpu_peak_gb": 2.5}
