"""Errors for files that the installed numpy cannot read, tested with names that no numpy has."""

import io
import pickle

import numpy as np
import pytest

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.save_util import explain_newer_numpy
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.support.helpers import counter_model

INSTALLED = f"the numpy {np.__version__} that is installed cannot read it"


class OfNewerNumpy:
    """Pickled as a call of a numpy function that the installed version does not have."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __reduce__(self):
        return unpickled, (self.module, self.name)


def unpickled(module: str, name: str):
    """Look up a name as pickle does."""
    return pickle.loads(b"c" + f"{module}\n{name}\n.".encode())


UNKNOWN = {
    "module": (("numpy._newer", "array"), r"No module named 'numpy\._newer'"),
    "attribute": (("numpy", "newer_scalar"), "Can't get attribute 'newer_scalar' on <module 'numpy'"),
}


@pytest.mark.parametrize("name, reason", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_models(name, reason, kind, tmp_path):
    """Model files contain the numpy version that they were written with."""
    model = counter_model()
    model.something = OfNewerNumpy(*name)
    file = tmp_path / "model" if kind == "file" else io.BytesIO()
    model.save(file)
    message = rf"written with numpy {np.__version__}, and {INSTALLED} \({reason}"
    with pytest.raises(ImportError, match=message):
        DreamerV3.load(file)
    assert DreamerV3.load(file, custom_objects=dict(something=None)).something is None  # SB3's workaround


@pytest.mark.parametrize("name, reason", UNKNOWN.values(), ids=UNKNOWN)
def test_replay_buffers_and_policies(name, reason, tmp_path):
    model = counter_model().learn(30)
    own = model.replay_buffer
    own.something = OfNewerNumpy(*name)
    model.save_replay_buffer(tmp_path / "buffer")
    message = rf"written with another numpy, probably a newer one, and {INSTALLED} \({reason}"
    with pytest.raises(ImportError, match=message):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is own and model.learn(30)
    model.policy.dimensions = {"deter": OfNewerNumpy(*name)}
    model.policy.save(tmp_path / "policy")
    with pytest.raises(ImportError, match=message):
        DreamerPolicy.load(tmp_path / "policy")


def test_unknown_bit_generators(monkeypatch, tmp_path):
    """Seeded spaces contain a generator. An older numpy: `... is not a known BitGenerator module.`"""
    model = counter_model()
    model.action_space.seed(0)
    model.save(tmp_path / "model")

    def unknown(name):
        raise ValueError(f"{name} is not a known BitGenerator module.")

    monkeypatch.setattr(np.random._pickle, "__bit_generator_ctor", unknown)
    with pytest.raises(ImportError, match="is not a known BitGenerator module"):
        DreamerV3.load(tmp_path / "model")


def test_other_errors_are_unchanged(tmp_path):
    for error in (ModuleNotFoundError("No module named 'crafter'"), ValueError("not in /home/numpy/x"), AttributeError("x")):
        with pytest.raises(type(error), match=str(error)) as raised, explain_newer_numpy():
            raise error
        assert raised.value is error
    model = counter_model()
    model.something = OfNewerNumpy("tests.support.helpers", "nothing")  # SB3 only warns
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="Could not deserialize object something"):
        assert not hasattr(DreamerV3.load(tmp_path / "model"), "something")
