"""Fixtures for all tests."""

import pytest

from sb3_dreamer.dreamerv3.fast import make_update


@pytest.fixture
def plain_model(monkeypatch):
    """Every model is trained step by step, with autograd throughout."""
    monkeypatch.setattr(make_update, "supports_fused", lambda *_: False)
