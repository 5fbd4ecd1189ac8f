"""Parameter counts: equal to the official model's, and frozen for the letter sizes."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.dreamerv3.model_sizes import MODEL_SIZES, ModelSize, resolve_model_size
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

IMAGE_CASE = (spaces.Box(0, 255, (3, 64, 64), np.uint8), spaces.Discrete(6))
VECTOR_CASE = (spaces.Box(-np.inf, np.inf, (24,)), spaces.Box(-1.0, 1.0, (6,)))
ATARI_CASE = (spaces.Box(0, 255, (1, 96, 96), np.uint8), spaces.Discrete(18))

# Traced from the official model: 64x64x3 image, 6 discrete actions.
# encoder, RSSM, decoder, reward, continue, policy, value, all optimised
OFFICIAL_IMAGE = {
    "1m": (14_304, 376_704, 80_595, 57_663, 41_153, 49_926, 66_111, 686_456),
    "12m": (220_416, 5_979_648, 1_272_003, 721_407, 656_129, 789_510, 853_503, 10_492_616),
    "25m": (493_824, 13_442_304, 2_857_635, 1_573_503, 1_475_713, 1_774_086, 1_869_951, 23_487_016),
    "50m": (876_032, 23_886_848, 5_076_355, 2_753_279, 2_622_977, 3_151_878, 3_279_615, 41_646_984),
    "100m": (1_966_848, 53_721_600, 11_413_059, 6_095_871, 5_900_545, 7_087_110, 7_278_591, 93_463_624),
    "200m": (3_492_864, 95_483_904, 20_282_115, 10_749_183, 10_488_833, 12_595_206, 12_850_431, 165_942_536),
    "400m": (7_850_496, 214_791_168, 45_617_283, 23_987_967, 23_597_569, 28_329_990, 28_712_703, 372_887_176),
}
# Traced from the official model: 24 floats, 6-dimensional Box. encoder, RSSM, decoder, all optimised
OFFICIAL_VECTOR = {
    "1m": (10_112, 364_416, 51_096, 640_867),
    "12m": (138_752, 5_783_040, 794_136, 9_738_019),
    "25m": (306_432, 12_999_936, 1_781_016, 21_782_947),
    "50m": (539_648, 23_100_416, 3_161_112, 38_612_003),
    "100m": (1_202_688, 51_952_128, 7_100_952, 86_622_499),
    "200m": (2_127_872, 92_338_176, 12_613_656, 153_769_507),
    "400m": (4_764_672, 207_713_280, 28_357_656, 345_473_059),
}
# Ours: RLlib's widths on the 2025 architecture. Image case, vector case.
LETTERS = {
    "debug": (17_696, 7_459),
    "nano": (30_320, 18_211),
    "micro": (73_424, 58_979),
    "mini": (328_120, 260_003),
    "XXS": (1_825_256, 1_483_043),
    "XS": (4_385_944, 3_668_003),
    "S": (11_152_328, 10_151_459),
    "M": (19_523_368, 17_474_723),
    "L": (35_290_760, 32_075_043),
    "XL": (80_552_776, 74_055_203),
}


def build(case, name: str) -> DreamerPolicy:
    with th.device("meta"):
        return DreamerPolicy(*case, lambda _: 0.0, model_size=name)


def count(module: th.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def counts(policy: DreamerPolicy) -> tuple[int, ...]:
    world_model = policy.world_model
    parts = (world_model.encoder, world_model.rssm, world_model.decoder, world_model.reward_head)
    heads = (world_model.continue_head, policy.actor, policy.critic)
    return *(count(part) for part in parts + heads), sum(p.numel() for p in policy.trainable_parameters())


@pytest.mark.parametrize("name", OFFICIAL_IMAGE)
def test_official_counts_image(name):
    policy = build(IMAGE_CASE, name)
    assert counts(policy) == OFFICIAL_IMAGE[name]
    assert count(policy.critic_target) == count(policy.critic)


@pytest.mark.parametrize("name", OFFICIAL_VECTOR)
def test_official_counts_vector(name):
    result = counts(build(VECTOR_CASE, name))
    assert (*result[:3], result[-1]) == OFFICIAL_VECTOR[name]


@pytest.mark.parametrize(("name", "total"), [("12m", 11_808_850), ("200m", 186_936_082)])
def test_official_counts_atari(name, total):
    assert counts(build(ATARI_CASE, name))[-1] == total


@pytest.mark.parametrize("name", LETTERS)
def test_letter_counts_are_frozen(name):
    assert (counts(build(IMAGE_CASE, name))[-1], counts(build(VECTOR_CASE, name))[-1]) == LETTERS[name]


def test_every_size_is_counted():
    assert set(MODEL_SIZES) == set(LETTERS) | set(OFFICIAL_IMAGE)


def test_names():
    assert resolve_model_size("auto", has_images=False) == MODEL_SIZES["1m"]
    assert resolve_model_size("auto", has_images=True) == MODEL_SIZES["12m"]
    assert resolve_model_size("size12m") == resolve_model_size("12m", has_images=True)
    assert resolve_model_size("S", deter=64).deter == 64
    with pytest.raises(ValueError, match=r"`model_size` must be 'auto' or one of .*12m.*, got 'huge'"):
        resolve_model_size("huge")


@pytest.mark.parametrize(
    ("field", "value"),
    [("units", 0), ("stoch", 2.5), ("unimix", 1.0), ("cnn_multipliers", ()), ("deter", 30)],
)
def test_bad_dimensions(field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        ModelSize(**{field: value})
