"""Encoder and decoder: image geometry, any mix of keys."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.images import choose_keys
from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES, ModelSize
from sb3_dreamer.dreamerv3.networks import MultiDecoder, MultiEncoder, n_cnn_stages
from tests.support.helpers import MIXED, random_observations

SIZE = MODEL_SIZES["nano"]


@pytest.fixture(autouse=True)
def without_gradient():
    with th.no_grad():
        yield


@pytest.mark.parametrize(
    ("side", "stages", "coarse"),
    [
        ((64, 64), 4, (4, 4)),
        ((84, 84), 4, (6, 6)),
        ((96, 96), 4, (6, 6)),
        ((36, 36), 4, (3, 3)),
        ((40, 40), 4, (3, 3)),
        ((48, 64), 4, (3, 4)),
        ((210, 160), 4, (14, 10)),
        ((32, 32), 3, (4, 4)),
        ((16, 16), 2, (4, 4)),
        ((288, 512), 5, (9, 16)),
        ((16, 300), 2, (4, 75)),  # the lower bound applies
        ((8, 8), 1, (4, 4)),
    ],
)
def test_geometry(side, stages, coarse):
    assert n_cnn_stages(*side) == stages
    space = spaces.Box(0, 255, (3, *side), np.uint8)
    encoder, decoder = MultiEncoder(space, SIZE), MultiDecoder(space, SIZE)
    tower = encoder.towers[0].tower
    multipliers = [2, 3, 4, 4, 4][:stages]
    assert (tower.coarse_height, tower.coarse_width) == coarse
    assert tower.channels == [SIZE.depth * multiplier for multiplier in multipliers]
    observations = random_observations(space, (2,), np.random.default_rng(0))
    embed = encoder(observations)
    assert embed.shape == (2, coarse[0] * coarse[1] * tower.channels[-1]) == (2, encoder.features_dim)
    distribution = decoder(th.randn(2, SIZE.deter), th.randn(2, SIZE.stoch, SIZE.classes))["obs"]
    assert distribution.mode().shape == (2, 3, *side)  # cropped to the real pixels
    target = decoder.targets(observations)["obs"]
    np.testing.assert_allclose(distribution.loss(target), ((distribution.mean - target) ** 2).sum((1, 2, 3)), rtol=1e-5)


def test_padding_repeats_the_edge():
    space = spaces.Box(0, 255, (1, 17, 18), np.uint8)
    encoder = MultiEncoder(space, SIZE)
    seen = []
    encoder.towers[0].stages.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = random_observations(space, (1,), np.random.default_rng(0))
    encoder(image)
    padded = seen[0][0, 0]
    assert padded.shape == (24, 24)  # three stages
    np.testing.assert_allclose(padded[:17, :18], image[0, 0] / 255.0 - 0.5, atol=1e-6)
    assert th.equal(padded[17:, :18], padded[16:17, :18].expand(7, -1)) and th.equal(padded[:, 18], padded[:, 17])


def test_explicit_multipliers_set_the_stages():
    size = ModelSize(**{**SIZE.__dict__, "cnn_multipliers": (2, 4), "depth": 4})
    tower = MultiEncoder(spaces.Box(0, 255, (3, 32, 32), np.uint8), size).towers[0].tower
    assert tower.channels == [8, 16] and tower.coarse_height == 8


def test_any_mix_of_keys():
    rng = np.random.default_rng(0)
    encoder, decoder = MultiEncoder(MIXED, SIZE), MultiDecoder(MIXED, SIZE)
    observations = random_observations(MIXED, (5,), rng)
    # 3 flags of 2, 4 kinds, 5 numbers, 2 + 5 sizes: 22 inputs; one tower for each image size.
    assert encoder.mlp[0][0].in_features == 6 + 4 + 5 + 7
    assert [tower.tower.keys for tower in encoder.towers] == [["camera"], ["small.camera"]]
    assert encoder(observations).shape == (5, encoder.features_dim)
    distributions = decoder(th.randn(5, SIZE.deter), th.randn(5, SIZE.stoch, SIZE.classes))
    targets = decoder.targets(observations)
    assert set(distributions) == set(targets) == set(MIXED.spaces)
    for key, distribution in distributions.items():
        assert distribution.loss(targets[key]).shape == (5,), key
        assert distribution.mode().shape == targets[key].shape, key


def test_every_key_matters():
    encoder = MultiEncoder(MIXED, SIZE)
    observations = random_observations(MIXED, (1,), np.random.default_rng(0))
    embed = encoder(observations)
    for key in MIXED.spaces:
        others = random_observations(MIXED, (1,), np.random.default_rng(1))
        assert not th.allclose(encoder({**observations, key: others[key]}), embed), key


def test_images_of_one_size_share_a_tower():
    space = spaces.Dict({k: spaces.Box(0, 255, (c, 16, 16), np.uint8) for k, c in (("b", 3), ("a", 1))})
    encoder, decoder = MultiEncoder(space, SIZE), MultiDecoder(space, SIZE)
    assert len(encoder.towers) == 1 and encoder.towers[0].tower.keys == ["a", "b"]
    shapes = {k: d.mode().shape for k, d in decoder(th.randn(2, SIZE.deter), th.randn(2, 4, 4)).items()}
    assert shapes == {"a": (2, 1, 16, 16), "b": (2, 3, 16, 16)}


def test_scalar_and_matrix_boxes_and_offsets():
    space = spaces.Dict(
        {
            "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
            "matrix": spaces.Box(0, 255, (3, 4), np.uint8),
            "start": spaces.Discrete(3, start=5),
        }
    )
    encoder, decoder = MultiEncoder(space, SIZE), MultiDecoder(space, SIZE)
    observations = {
        "scalar": th.randn(2),
        "matrix": th.randint(0, 256, (2, 3, 4), dtype=th.uint8),
        "start": th.tensor([5, 7]),
    }
    assert encoder.mlp[0][0].in_features == 1 + 12 + 3
    assert encoder(observations).shape == (2, SIZE.units)
    targets = decoder.targets(observations)
    assert targets["start"][:, 0].tolist() == [0, 2]
    distributions = decoder(th.randn(2, SIZE.deter), th.randn(2, 4, 4))
    for key, distribution in distributions.items():
        assert distribution.loss(targets[key]).shape == (2,)


def test_float_images():
    bounded = spaces.Box(-2.0, 6.0, (3, 16, 16), np.float32)
    encoder, decoder = (cls(bounded, SIZE) for cls in (MultiEncoder, MultiDecoder))
    assert len(encoder.towers) == 1
    target = decoder.targets(th.full((1, 3, 16, 16), 4.0))["obs"]
    assert th.allclose(target, th.tensor(0.75))
    unbounded = spaces.Box(-np.inf, np.inf, (3, 16, 16))
    assert MultiEncoder(unbounded, SIZE).mlp is not None  # a vector by default
    with pytest.raises(ValueError, match=r"bounds of the image `obs` must be finite"):
        choose_keys(unbounded, normalize_images=False)


def test_image_bounds_are_elementwise():
    low = np.zeros((2, 16, 16), np.float32)
    high = np.stack([np.full((16, 16), 1.0), np.full((16, 16), 100.0)]).astype(np.float32)
    space = spaces.Box(low, high)
    decoder = MultiDecoder(space, SIZE, choose_keys(space, image_keys=["obs"]))
    target = decoder.targets(th.tensor(high)[None] * 0.25)["obs"]
    assert th.allclose(target, th.tensor(0.25))
    binary = MultiDecoder(spaces.Box(0, 1, (1, 16, 16), np.uint8), SIZE)
    assert binary.targets(th.ones(1, 1, 16, 16, dtype=th.uint8))["obs"].min() == 1.0
    assert not binary.state_dict().keys() & {"to_unit.0.low"}


def test_unsupported_space():
    with pytest.raises(ValueError, match="not supported"):
        MultiEncoder(spaces.Dict({"text": spaces.Text(5)}), SIZE)


@pytest.mark.parametrize(
    ("side", "channels"), [(16, [16, 32]), (32, [8, 16, 32]), (64, [8, 8, 16, 32]), (300, [8, 8, 8, 16, 32])]
)
def test_doubling_multipliers_follow_the_image_size(side, channels):
    size = ModelSize(**{**SIZE.__dict__, "cnn_multipliers": "doubling", "depth": 8})
    tower = MultiEncoder(spaces.Box(0, 255, (3, side, side), np.uint8), size).towers[0].tower
    assert tower.channels == channels
