"""Image spaces: which Box is encoded by convolutions, in which layout and scale. Arguments of the user have priority."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.images import choose_keys, image_layout
from sb3_dreamer.common.wrappers import CodesToClasses
from sb3_dreamer.dreamerv3.networks import UnitPixels
from tests.support.envs import QUICK, NoiseEnv
from tests.support.helpers import VECTOR, make_loss, make_policy, random_batch

ACTIONS = spaces.Discrete(2)


def box(low, high, shape, dtype) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


# space: (axes in the order channels, height, width; C, h, w)
PLAIN = {
    "uint8 mask 0..10, channels last": (box(0, 10, (32, 32, 3), np.uint8), ((2, 0, 1), 3, 32, 32)),
    "uint8 mask 0..1, channels first": (box(0, 1, (1, 16, 20), np.uint8), ((0, 1, 2), 1, 16, 20)),
    "float 0..1, last": (box(0, 1, (64, 48, 3), np.float32), ((2, 0, 1), 3, 64, 48)),
    "float -1..1, first": (box(-1, 1, (4, 24, 36), np.float64), ((0, 1, 2), 4, 24, 36)),
    "float 0..255, last": (box(0, 255, (16, 16, 1), np.float32), ((2, 0, 1), 1, 16, 16)),
    "uint16 depth": (box(0, 65535, (24, 32, 1), np.uint16), ((2, 0, 1), 1, 24, 32)),
    "int16 depth": (box(-1000, 1000, (24, 32, 1), np.int16), ((2, 0, 1), 1, 24, 32)),
    "0/1 grid": (box(0, 1, (10, 10, 4), np.int8), ((2, 0, 1), 4, 10, 10)),
    "bool grid": (box(0, 1, (10, 12, 4), bool), ((2, 0, 1), 4, 10, 12)),
    "frame stack, last": (box(0, 255, (4, 64, 64, 3), np.uint8), ((0, 3, 1, 2), 12, 64, 64)),
    "frame stack, first": (box(0, 255, (2, 3, 64, 64), np.uint8), ((0, 1, 2, 3), 6, 64, 64)),
    "frame stack behind": (box(0, 255, (64, 64, 3, 5), np.uint8), ((2, 3, 0, 1), 15, 64, 64)),
    "SB3's, transposed": (box(0, 255, (3, 64, 64), np.uint8), ((0, 1, 2), 3, 64, 64)),
    "SB3's, six channels": (box(0, 255, (6, 20, 20), np.uint8), ((0, 1, 2), 6, 20, 20)),
}
NUMBERS = {
    "unbounded": box(-np.inf, np.inf, (64, 64, 3), np.float32),
    "bounded in name only": box(np.finfo(np.float32).min, np.finfo(np.float32).max, (64, 64, 3), np.float32),
    "two channels": box(0, 1, (64, 64, 2), np.float32),
    "small": box(0, 1, (7, 7, 3), np.float32),
    "channels in the middle": box(0, 1, (16, 3, 16), np.float32),
    "a volume": box(0, 1, (16, 16, 16, 3), np.float32),
    "a short volume": box(0, 1, (10, 16, 16, 3), np.float32),
    "five axes": box(0, 1, (2, 2, 16, 16, 3), np.float32),
    "a constant channel": box(np.zeros((16, 16, 3)), np.tile([0.0, 1.0, 1.0], (16, 16, 1)), (16, 16, 3), np.float32),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images(name):
    space, layout = PLAIN[name]
    assert image_layout(space) == layout


@pytest.mark.parametrize("name", NUMBERS)
def test_ambiguous_images_warn(name):
    space = NUMBERS[name]
    n = int(np.prod(space.shape))
    with pytest.warns(UserWarning, match=rf"`obs` of shape .* and dtype float32 is read as {n:,} numbers") as warned:
        model = DreamerV3("MlpPolicy", NoiseEnv(space, ACTIONS), **QUICK)
    (message,) = [str(w.message) for w in warned if "numbers" in str(w.message)]
    assert not model.policy.world_model.encoder.towers
    if "image_keys=['obs']" in message:  # the hint is given only if it helps
        assert make_policy(space, ACTIONS, image_keys=["obs"]).world_model.encoder.towers
    else:
        assert "give its space, by a wrapper, such bounds and such a shape" in message
        with pytest.raises(ValueError, match=r"`image_keys` must be Boxes|bounds of the image"):
            make_policy(space, ACTIONS, image_keys=["obs"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_policy(space, ACTIONS, vector_keys=["obs"])  # explicit choice


@pytest.mark.parametrize("name", PLAIN)
def test_positions_and_values_of_pixels_are_kept(name):
    """The lowest value becomes 0, the highest 1, and pixel (c, y, x) is the same as in the array."""
    space, (axes, channels, height, width) = PLAIN[name]
    rng = np.random.default_rng(0)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    image = np.round(low + (high - low) * rng.integers(0, 2, space.shape)).astype(space.dtype)
    unit = UnitPixels(space, image_layout(space))(th.as_tensor(image[None]))[0]
    expected = ((image - low) / (high - low)).transpose(axes).reshape(channels, height, width)
    assert set(unit.unique().tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal(unit.numpy(), expected)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("name", PLAIN)
def test_learning_acting_and_reconstructing(name, policy, tmp_path):
    space, (_, channels, height, width) = PLAIN[name]
    model = DreamerV3(policy, NoiseEnv(space, ACTIONS), seed=0, **QUICK).learn(24)
    assert model._n_updates > 0 and model.policy.world_model.encoder.mlp is None
    obs = np.stack([space.sample() for _ in range(2)])
    actions, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], actions)
    batch = model.replay_buffer.sample(2)
    world_model = model.policy.world_model
    filtered = world_model.observe(batch, th.rand(2, 6, model.policy.size.stoch))
    losses, *_ = world_model.loss(batch, *filtered, free_nats=1.0, gamma=0.99)
    # Pixels in [0, 1] against a decoder around 0.5: the bound of the squared error says that the scale is right.
    assert 0 < losses["reconstruction"].max() <= channels * height * width


def test_the_size_follows_the_image():
    image = PLAIN["float 0..1, last"][0]
    with_image = DreamerV3("MlpPolicy", NoiseEnv(image, ACTIONS), model_size="auto", buffer_size=100)
    assert with_image.policy.size.deter == 2048
    flat = DreamerV3(
        "MlpPolicy", NoiseEnv(image, ACTIONS), model_size="auto", buffer_size=100, policy_kwargs=dict(vector_keys=["obs"])
    )
    assert flat.policy.size.deter == 512


def test_channels_last_is_channels_first():
    """The same pixels in either order give the same embedding and the same loss."""
    last, first = box(0, 10, (16, 20, 3), np.uint8), box(0, 10, (3, 16, 20), np.uint8)
    policies = [make_policy(space, ACTIONS) for space in (last, first)]
    policies[1].load_state_dict(policies[0].state_dict())
    batch = random_batch(policies[0])
    image = th.as_tensor(np.random.default_rng(0).integers(0, 11, (4, 8, 16, 20, 3)), dtype=th.uint8)
    noise = make_loss(policies[0]).draw_noise(4, 8)
    outputs = [
        make_loss(policy)(batch._replace(observations=observations), noise)
        for policy, observations in zip(policies, (image, image.permute(0, 1, 4, 2, 3)), strict=True)
    ]
    assert th.allclose(outputs[0].terms["reconstruction"], outputs[1].terms["reconstruction"])
    assert th.allclose(outputs[0].loss, outputs[1].loss)


def test_gymnasiums_frame_stack():
    env = FrameStackObservation(NoiseEnv(box(0, 255, (36, 36, 3), np.uint8), ACTIONS), 4)
    model = DreamerV3("CnnPolicy", env, seed=0, **QUICK).learn(24)
    assert model._n_updates > 0 and model.policy.world_model.encoder.towers[0].tower.key_channels == [12]


def test_vec_transpose_image_with_skip():
    """The image stays channels last, and the model reads it that way."""
    env = VecTransposeImage(DummyVecEnv([lambda: NoiseEnv(box(0, 255, (32, 40, 3), np.uint8), ACTIONS)]), skip=True)
    model = DreamerV3("CnnPolicy", env, **QUICK)
    assert model.policy.world_model.encoder.towers[0].tower.key_channels == [3]


# ---- arguments of the user ----

SPACE = spaces.Dict(
    {
        "camera": box(0, 255, (3, 16, 16), np.uint8),
        "depth": box(0, 1, (16, 16), np.float32),
        "state": VECTOR,
        "truth": spaces.Discrete(4),
    }
)


def test_keys_by_default():
    keys = choose_keys(SPACE)
    assert list(keys.layouts) == ["camera"] and keys.encoded == keys.decoded == ["camera", "depth", "state", "truth"]


@pytest.mark.parametrize(
    "said, images, encoded, decoded",
    [
        (dict(image_keys=["depth"]), ["camera", "depth"], "camera depth state truth", "camera depth state truth"),
        (dict(vector_keys=["camera"]), [], "camera depth state truth", "camera depth state truth"),
        (dict(image_keys=["camera"], vector_keys=["state"]), ["camera"], "camera state", "camera state"),
        (dict(decoder_keys=["state"]), ["camera"], "camera depth state truth", "state"),
        (dict(image_keys=["camera"], vector_keys=[], decoder_keys=["truth"]), ["camera"], "camera", "truth"),
        (dict(decoder_keys=[]), ["camera"], "camera depth state truth", ""),
    ],
)
def test_arguments_of_the_user_have_priority(said, images, encoded, decoded, tmp_path):
    model = DreamerV3("MultiInputPolicy", NoiseEnv(SPACE, ACTIONS), seed=0, **QUICK, policy_kwargs=said).learn(24)
    encoder, decoder = model.policy.world_model.encoder, model.policy.world_model.decoder
    towers = [key for tower in encoder.towers for key in tower.tower.keys]
    assert sorted([*encoder.vector_keys, *towers]) == encoded.split()
    assert sorted([*decoder.vector_keys, *decoder.image_keys]) == decoded.split()
    assert towers == [key for key in images if key in encoded.split()]
    obs = {key: np.asarray(space.sample()) for key, space in SPACE.spaces.items()}
    assert model._n_updates > 0
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model")
    assert loaded.policy.key_kwargs == {**dict.fromkeys(("image_keys", "vector_keys", "decoder_keys")), **said}
    actions = [one.predict(obs, deterministic=True)[0] for one in (model, loaded)]
    np.testing.assert_array_equal(*actions)


def test_an_unseen_key_changes_nothing_and_gets_no_gradient():
    policy = make_policy(SPACE, ACTIONS, image_keys=["camera"], vector_keys=["state"], decoder_keys=["camera"])
    batch, noise = random_batch(policy), make_loss(policy).draw_noise(4, 8)
    first = make_loss(policy)(batch, noise).loss
    other = {**batch.observations, "truth": 3 - batch.observations["truth"], "depth": 1 - batch.observations["depth"]}
    assert make_loss(policy)(batch._replace(observations=other), noise).loss == first
    seen = {**batch.observations, "state": batch.observations["state"] + 1}
    assert make_loss(policy)(batch._replace(observations=seen), noise).loss != first


@pytest.mark.parametrize(
    "said, match",
    [
        (dict(image_keys=["camrea"]), r"`image_keys` must be a list of keys among \['camera', 'depth', .*got \['camrea'\]"),
        (dict(vector_keys="state"), "`vector_keys` must be a list of keys among .*got 'state'"),
        (dict(image_keys=["camera"], vector_keys=["camera"]), r"must not share keys, got \['camera'\]"),
        (dict(image_keys=["state"]), "`image_keys` must be Boxes of two axes, of three .*`state` is Box"),
        (dict(image_keys=["truth"]), "`truth` is Discrete"),
        (dict(image_keys=[], vector_keys=[]), "the model would see none of"),
    ],
    ids=str,
)
def test_invalid_keys(said, match):
    with pytest.raises(ValueError, match=match):
        make_policy(SPACE, ACTIONS, **said)


class Wide(NoiseEnv):
    """Observations exceed the bounds of the space, as in some simulators."""

    def step(self, action):
        obs, *rest = super().step(action)
        return (obs * 3.0, *rest)


def test_bounds_count_where_a_key_is_read_as_an_image():
    env = Wide(box(0, 1, (8, 8, 3), np.float32), ACTIONS)
    with pytest.raises(ValueError, match=r"`obs`\[.*allowed are values from -0\.001 to 1\.001"):
        DreamerV3("MlpPolicy", env, seed=0, **QUICK).learn(24)
    as_vector = dict(vector_keys=["obs"])
    assert DreamerV3("MlpPolicy", env, seed=0, **QUICK, policy_kwargs=as_vector).learn(24)._n_updates > 0
    normalised = VecNormalize(DummyVecEnv([lambda: env]))
    assert DreamerV3("MlpPolicy", normalised, seed=0, **QUICK, policy_kwargs=as_vector).learn(24)._n_updates > 0
    with pytest.raises(ValueError, match="VecNormalize must leave images alone"):
        DreamerV3("MlpPolicy", normalised, **QUICK)
    grid = Wide(box(0, 1, (8, 8, 2), np.float32), ACTIONS)
    with pytest.raises(ValueError, match=r"`obs`\[.*allowed are values"):
        DreamerV3("MlpPolicy", grid, seed=0, **QUICK, policy_kwargs=dict(image_keys=["obs"])).learn(24)


def test_cnn_policy_error_names_the_fix():
    env = NoiseEnv(box(0, 255, (64, 64), np.uint8), ACTIONS)
    with pytest.raises(AssertionError, match=r"a channel axis is missing: .*ReshapeObservation\(env, \(64, 64, 1\)\)"):
        DreamerV3("CnnPolicy", env, **QUICK)
    env = gym.wrappers.ReshapeObservation(env, (64, 64, 1))  # the suggested fix works
    assert DreamerV3("CnnPolicy", env, **QUICK).observation_space.shape == (1, 64, 64)
    other_way = DreamerV3("CnnPolicy", env.env, **QUICK, policy_kwargs=dict(image_keys=["obs"])).learn(24)
    assert other_way.policy.world_model.encoder.towers[0].tower.key_channels == [1] and other_way._n_updates > 0


# ---- codes in the format of an image ----


class Codes(gym.Env):
    """Observations as in MiniGrid: small codes in a space of 0 to 255."""

    observation_space = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    action_space = ACTIONS

    def __init__(self, largest: int = 10):
        self.largest = largest

    def _draw(self):
        return self.np_random.integers(0, self.largest + 1, (7, 7, 3)).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._draw(), {}

    def step(self, action):
        self.t += 1
        return self._draw(), 0.0, False, self.t == 50, {}


def test_codes_in_an_image_are_warned_of_and_read_as_classes():
    settings = {**QUICK, "learning_starts": 1300, "training_ratio": 0.1, "buffer_size": 2000}
    with pytest.warns(UserWarning, match=r"The image `obs` reached no value above 10 in its first 1,0\d\d rows") as warned:
        DreamerV3("CnnPolicy", DummyVecEnv([Codes, Codes]), seed=0, **settings).learn(1400)
    assert sum("no value above" in str(w.message) for w in warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DreamerV3("CnnPolicy", DummyVecEnv([lambda: Codes(40)] * 2), seed=0, **settings).learn(1400)
        model = DreamerV3("MlpPolicy", CodesToClasses(Codes(), 11), seed=0, **QUICK).learn(24)
    assert model.policy.world_model.encoder.sizes["obs"] == [11] * 147
    rows = model.replay_buffer.observations[: model.replay_buffer.size()]
    assert rows.shape[1:] == (1, 147) and rows.max() == 10
    with pytest.raises(ValueError, match=r"`obs`.* is 11: allowed are whole numbers from 0 to 9"):
        DreamerV3("MlpPolicy", CodesToClasses(Codes(11), 10), seed=1, **QUICK).learn(24)


def test_a_file_in_which_an_image_was_numbers(tmp_path):
    """Version 0.1.0 read images of floats as vectors."""
    env = NoiseEnv(box(0, 1, (16, 16, 3), np.float32), ACTIONS)
    old = DreamerV3("MlpPolicy", env, **QUICK, policy_kwargs=dict(vector_keys=["obs"]))
    with pytest.raises(RuntimeError, match=r"no networks for images, .*policy_kwargs=dict\(vector_keys=\['obs'\]"):
        DreamerV3("MlpPolicy", env, **QUICK).policy.load_state_dict(old.policy.state_dict())
    old.policy_kwargs = {}
    old.save(tmp_path / "old")
    with pytest.raises(RuntimeError, match="no networks for images"):
        DreamerV3.load(tmp_path / "old")
    loaded = DreamerV3.load(tmp_path / "old", custom_objects=dict(policy_kwargs=dict(vector_keys=["obs"])))
    assert not loaded.policy.image_keys
