"""Custom encoders and decoders, and settings of the policy."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.distributions import MultiCategorical, SymlogMSE
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY, VECTOR, make_loss

VOCABULARY, LENGTH = 20, 6
TOKENS = spaces.Box(0, VOCABULARY - 1, (LENGTH,), np.int64)


class TokenEnv(gym.Env):
    """Observes one of eight sentences of six words."""

    def __init__(self):
        self.observation_space, self.action_space, self.t = TOKENS, spaces.Discrete(2), 0
        self.sentences = np.random.default_rng(0).integers(0, VOCABULARY, (8, LENGTH))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.sentences[self.np_random.integers(8)], {}

    def step(self, action):
        self.t += 1
        return self.sentences[self.np_random.integers(8)], 0.0, False, self.t == 20, {}


class TokenEncoder(nn.Module):
    """Embeds each word. The values are categories, not quantities."""

    def __init__(self, observation_space, width=8):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.features_dim = width * observation_space.shape[0]

    def forward(self, obs):
        assert obs.dtype == th.int64  # the dtype of the space
        return self.embedding(obs).flatten(1)


class TokenDecoder(nn.Module):
    """Logits over words at each position."""

    def __init__(self, observation_space, deter, stoch, classes, units=64):
        super().__init__()
        n_out = observation_space.shape[0] * VOCABULARY
        self.net = nn.Sequential(nn.Linear(deter + stoch * classes, units), nn.SiLU(), nn.Linear(units, n_out))

    def forward(self, deter, stoch):
        return {"obs": MultiCategorical(self.net(th.cat([deter, stoch.flatten(1)], -1)), [VOCABULARY] * LENGTH)}


def token_model(**policy_kwargs) -> DreamerV3:
    sizes = dict(deter=32, hidden=32, stoch=4, classes=8, units=32)
    settings = dict(learning_rate=3e-3, lr_warmup_steps=0, training_ratio=64, batch_size=8, imagine_last=2)
    env = make_vec_env(TokenEnv, 2, seed=0)
    return DreamerV3("MlpPolicy", env, seed=0, **{**TINY, **settings}, policy_kwargs={**sizes, **policy_kwargs})


def test_tokens_are_learnt(tmp_path):
    own = dict(encoder_class=TokenEncoder, encoder_kwargs=dict(width=12), decoder_class=TokenDecoder)
    model = token_model(**own)
    assert model.policy.world_model.encoder.features_dim == 12 * LENGTH
    losses = []
    right = model._metrics.add

    def add(names, values, *args):
        losses.append(values[names.index("world_model/reconstruction_loss")].item())
        right(names, values, *args)

    model._metrics.add = add
    model.learn(350)
    assert losses[0] == pytest.approx(LENGTH * np.log(VOCABULARY), rel=0.1)
    assert np.mean(losses[-10:]) < losses[0] / 5.0
    moved = model.policy.world_model.encoder.embedding.weight
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded.policy.world_model.decoder, TokenDecoder)
    assert th.equal(loaded.policy.world_model.encoder.embedding.weight, moved)
    model.policy.save(tmp_path / "policy.pt")
    assert isinstance(DreamerPolicy.load(tmp_path / "policy.pt", device="cpu").world_model.encoder, TokenEncoder)


@pytest.mark.parametrize(
    "own", [dict(encoder_class=TokenEncoder), dict(decoder_class=TokenDecoder)], ids=["encoder", "decoder"]
)
def test_custom_encoder_or_decoder_alone(own):
    assert token_model(**own).learn(40)._n_updates > 0


def test_classes_by_name(tmp_path):
    """As in a YAML file. A checkpoint holds the names, so a run is resumed without passing the classes again."""
    own = {f"{part}_class": f"{__name__}.Token{part.capitalize()}" for part in ("encoder", "decoder")}
    model = token_model(**own, encoder_kwargs=dict(width=12)).learn(40)
    assert type(model.policy.world_model.decoder) is TokenDecoder
    with pytest.warns(UserWarning, match="get_state"):
        model.save_checkpoint(tmp_path)
        resumed = DreamerV3.resume(tmp_path, make_vec_env(TokenEnv, 2, seed=0))
    assert type(resumed.policy.world_model.encoder) is TokenEncoder
    assert th.equal(resumed.policy.world_model.encoder.embedding.weight, model.policy.world_model.encoder.embedding.weight)


class PositionDecoder(nn.Module):
    """Reconstructs one of two keys."""

    def __init__(self, observation_space, deter, stoch, classes):
        super().__init__()
        self.net = nn.Linear(deter, observation_space["position"].shape[0])

    def forward(self, deter, stoch):
        return {"position": SymlogMSE(self.net(deter))}


def test_keys_left_out_are_not_reconstructed():
    space = spaces.Dict({"position": VECTOR, "noise": spaces.Box(-1, 1, (50,))})
    env = NoiseEnv(space, spaces.Discrete(2))
    model = DreamerV3("MultiInputPolicy", env, seed=0, **TINY, policy_kwargs=dict(decoder_class=PositionDecoder))
    model.learn(60)
    batch = model.replay_buffer.sample(4)
    output = model.loss_module(batch)
    per_key = model.policy.world_model.reconstruction_losses(output.states, batch.observations)
    assert set(per_key) == {"position"} and th.equal(per_key["position"], output.terms["reconstruction"])
    noise = model.loss_module.draw_noise(*batch.rewards.shape)
    losses = [
        make_loss(model.policy, loss_scales=scales)(batch, noise) for scales in (None, {"reconstruction": {"position": 3}})
    ]
    assert th.allclose(losses[1].terms["reconstruction"], 3 * losses[0].terms["reconstruction"])
    with pytest.raises(ValueError, match=r"must name keys that are reconstructed: \['position'\], got \['noise'\]"):
        make_loss(model.policy, loss_scales={"reconstruction": {"noise": 3.0}})


class NoWidth(nn.Linear):
    def __init__(self, observation_space):
        super().__init__(LENGTH, 3)


class WrongWidth(TokenEncoder):
    def forward(self, obs):
        return super().forward(obs)[:, :3]


class WrongKey(TokenDecoder):
    def forward(self, deter, stoch):
        return {"token": super().forward(deter, stoch)["obs"]}


class PerWord(MultiCategorical):
    def loss(self, target):
        return super().loss(target).unsqueeze(-1).expand(-1, LENGTH)


class LossPerWord(TokenDecoder):
    def forward(self, deter, stoch):
        return {"obs": PerWord(self.net(th.cat([deter, stoch.flatten(1)], -1)), [VOCABULARY] * LENGTH)}


class TooFewWords(TokenDecoder):
    def forward(self, deter, stoch):
        return {"obs": SymlogMSE(self.net(th.cat([deter, stoch.flatten(1)], -1))[:, : LENGTH - 1])}


class NoDistribution(TokenDecoder):
    def forward(self, deter, stoch):
        return {"obs": self.net(th.cat([deter, stoch.flatten(1)], -1))}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (dict(encoder_class=NoWidth), "`encoder_class` NoWidth must have a positive integer `features_dim`, got None"),
        (dict(encoder_class=WrongWidth), r"`encoder_class` WrongWidth must return .* = \(2, 48\) .* got \(2, 3\)"),
        (dict(decoder_class=WrongKey), r"`decoder_class` WrongKey must return .* among \['obs'\], got \['token'\]"),
        (
            dict(encoder_class="tests.nowhere.Encoder"),
            "`encoder_class` must be a class, or 'package.module.Class', got 'tests.nowhere.Encoder': .* no attribute",
        ),
        (dict(encoder_class="os.system"), "got 'os.system': it is no subclass of torch.nn.Module"),
        (dict(decoder_class="tests.test_custom_policy.Missing"), "got 'tests.test_custom_policy.Missing': .* no attribute"),
        (dict(decoder_class=NoDistribution), "`decoder_class` NoDistribution must return distributions .* `obs` has not"),
        (
            dict(decoder_class=TooFewWords),
            r"TooFewWords: the `loss` of `obs` fails for observations of shape \(2, 6\): .*size",
        ),
        (dict(decoder_class=LossPerWord), r"LossPerWord .* one number per observation, that of `obs` has the shape \(2, 6\)"),
    ],
)
def test_errors(own, message):
    with pytest.raises(ValueError, match=message):
        token_model(**own)
