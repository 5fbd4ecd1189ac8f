"""
The golden checks read all dimensions from the arrays, so they also accept files of other shapes.

The files are not official: they are written by our code, then checked, then changed to make the check fail.
"""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.dreamerv3.model_sizes import ModelSize
from sb3_dreamer.dreamerv3.networks import MultiDecoder, MultiEncoder
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.golden import model as gm
from tests.golden.checks import CHECKS, run_check
from tests.golden.files import perturb
from tests.golden.record import Golden

B, T, H = 2, 4, 3
DIMENSIONS = dict(deter=24, hidden=6, stoch=2, classes=5, blocks=4, units=10, depth=4)


class Recorder(Golden):
    """Records our numbers instead of comparing them."""

    def expect(self, name, ours, rtol=0.0, atol=0.0):
        value = ours.detach().numpy() if isinstance(ours, th.Tensor) else np.asarray(ours)
        self.arrays.setdefault(name, value)


def record(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    recorder = Recorder(name, dict(arrays))
    family = max((prefix for prefix in CHECKS if name.startswith(prefix)), key=len)
    CHECKS[family](recorder)
    return recorder.arrays


def random_weights(names, rng) -> dict[str, np.ndarray]:
    arrays = {name: gm.to_official(name, parameter) for name, parameter in names}
    return {f"w:{name}": rng.normal(0.0, 0.3, array.shape).astype(np.float32) for name, array in arrays.items()}


def random_array(space: spaces.Space, lead: tuple[int, ...], rng) -> np.ndarray:
    """An observation in the format of the official files: images are channels last."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, lead).astype(np.int32)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(0, space.nvec, (*lead, *space.shape)).astype(np.int32)
    if space.dtype == np.uint8:
        channels, *side = space.shape
        return rng.integers(0, 256, (*lead, *side, channels)).astype(np.uint8)
    return rng.normal(size=(*lead, *space.shape)).astype(np.float32)


def one_hots(lead: tuple[int, ...], rng) -> np.ndarray:
    shape = (*lead, DIMENSIONS["stoch"])
    return np.eye(DIMENSIONS["classes"], dtype=np.float32)[rng.integers(0, DIMENSIONS["classes"], shape)]


CASES = {
    "image_vector_integer": (
        {
            "image": spaces.Box(0, 255, (3, 16, 16), np.uint8),
            "vec": spaces.Box(-np.inf, np.inf, (4,)),
            "kind": spaces.Discrete(3),
        },
        spaces.Discrete(5),
    ),
    "box_actions": (
        {"vec": spaces.Box(-np.inf, np.inf, (7,)), "extra": spaces.Box(-np.inf, np.inf, (2, 2))},
        spaces.Box(-1.0, 1.0, (3,)),
    ),
    "large_image": ({"image": spaces.Box(0, 255, (1, 96, 96), np.uint8)}, spaces.MultiDiscrete([4, 4])),
}


@pytest.mark.parametrize("case", CASES)
def test_full_loss_of_other_shapes(case):
    rng = np.random.default_rng(0)
    space, action_space = CASES[case]
    policy = DreamerPolicy(spaces.Dict(space), action_space, lambda _: 0.0, model_size="debug", **DIMENSIONS)
    arrays = random_weights([*gm.policy_names(policy), *gm.target_names(policy)], rng)
    lead = (B, T + 1)
    arrays |= {f"data:{key}": random_array(sub, lead, rng) for key, sub in space.items()}
    is_first = rng.random(lead) < 0.3
    arrays |= {
        "data:action": random_array(action_space, lead, rng),
        "data:reward": rng.normal(size=lead).astype(np.float32),
        "data:is_first": is_first,
        "data:is_last": rng.random(lead) < 0.2,
        "data:is_terminal": rng.random(lead) < 0.1,
        "data:dyn.deter": np.tanh(rng.normal(size=(*lead, DIMENSIONS["deter"]))).astype(np.float32),
        "data:dyn.stoch": one_hots(lead, rng),
        "post_stoch_sample": one_hots((B, T), rng),
        "imag_stoch": one_hots((B * T, H), rng),
        "imag_action:action": random_array(action_space, (B * T, H + 1), rng),
        "retnorm_lo_before": np.float32(0.2),
        "retnorm_hi_before": np.float32(0.7),
    }
    arrays = record("full_loss_" + case, arrays)
    assert {f"loss:{key}" for key in space} | {f"termgrad:{key}:enc" for key in space} <= set(arrays)
    golden = run_check("full_loss_" + case, arrays)
    for name in golden.outputs - golden.read:
        with pytest.raises(AssertionError):
            golden.compare(name, perturb(arrays[name]))
    outputs = golden.outputs
    spoilt = [name for name in outputs if name.startswith(("loss:", "imag_ret", "termgrad:rew:enc"))]
    for name in spoilt:
        with pytest.raises(AssertionError):
            run_check("full_loss_" + case, {**arrays, name: perturb(arrays[name])})


def test_encoder_and_decoder_of_other_shapes():
    rng = np.random.default_rng(0)
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 96, 96), np.uint8), "far": spaces.MultiDiscrete([6, 6])})
    size = ModelSize(**{**DIMENSIONS, "blocks": 8, "units": 12})
    encoder, decoder = MultiEncoder(space, size), MultiDecoder(space, size)
    arrays = random_weights([*gm.encoder_names(encoder), *gm.decoder_names(decoder)], rng)
    arrays |= {f"obs:{key}": random_array(space[key], (3, 1), rng) for key in space.spaces}
    arrays |= {"deter": rng.normal(size=(3, 1, 24)).astype(np.float32), "stoch": one_hots((3, 1), rng)}
    # The arrays of the file determine the kind of each key.
    arrays |= {"image_mean": np.zeros((3, 1, 96, 96, 3), np.float32), "far_logits": np.zeros((3, 1, 2, 6), np.float32)}
    recorder = Recorder("encdec_other", dict(arrays))
    recorder.expect = lambda name, ours, rtol=0.0, atol=0.0: recorder.arrays.update({name: ours.detach().numpy()})
    CHECKS["encdec"](recorder)
    golden = run_check("encdec_other", recorder.arrays)
    assert golden.outputs == {"tokens", "image_loss", "image_mean", "far_loss", "far_logits"}


def test_unknown_files_and_arrays_fail():
    with pytest.raises(AssertionError, match="no check for golden file mystery"):
        run_check("mystery", {})
    x = np.zeros(3, np.float32)
    arrays = dict(x=x, y=x, symlog_x=x, symexp_y=x, roundtrip=x)
    run_check("symlog_other", arrays)
    with pytest.raises(AssertionError, match=r"arrays that no check uses: \['surprise'\]"):
        run_check("symlog_other", {**arrays, "surprise": x})
