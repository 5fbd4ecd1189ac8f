"""Fixtures for all tests."""

import pytest

from sb3_dreamer.dreamerv3 import imagination, scan


@pytest.fixture
def plain_model(monkeypatch):
    """Every model takes the plain path: step by step, with autograd throughout."""
    for module in (scan, imagination):
        monkeypatch.setattr(module, "is_covered", lambda rssm: False)
