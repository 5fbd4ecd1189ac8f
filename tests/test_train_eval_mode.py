"""Training and evaluation mode, tested with a custom encoder that has batch norm and dropout."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.distributions import SymlogMSE
from tests.support.helpers import VECTOR, counter_envs, counter_model, make_policy


class NormAndDropout(nn.Module):
    """Batch norm over the observation, then dropout."""

    features_dim = 16

    def __init__(self, observation_space):
        super().__init__()
        self.norm = nn.BatchNorm1d(observation_space.shape[0])
        self.layer = nn.Linear(observation_space.shape[0], 16)
        self.dropout = nn.Dropout(0.5)

    def forward(self, obs):
        return self.dropout(self.layer(self.norm(obs)))


@pytest.fixture
def model() -> DreamerV3:
    return counter_model(policy_kwargs=dict(encoder_class=NormAndDropout), training_ratio=8)


def statistics(model) -> th.Tensor:
    return model.policy.world_model.encoder.norm.running_mean.clone()


def test_training_moves_the_statistics(model):
    before = statistics(model)
    model.learn(60)
    assert not th.equal(before, statistics(model))


def test_collecting_does_not(model):
    model.learn(60)
    before = statistics(model)
    model.train = lambda gradient_steps, batch_size: None
    model.learn(30)
    assert th.equal(before, statistics(model))


def test_predict_does_not_and_repeats_itself(model):
    model.learn(60)
    before, obs, starts = statistics(model), np.ones((4, 3), np.float32), np.ones(4)
    model.policy.set_training_mode(True)  # as after train
    first, state = model.predict(obs, episode_start=starts, deterministic=True)
    again, same = model.predict(obs, episode_start=starts, deterministic=True)
    assert th.equal(before, statistics(model)) and not model.policy.training
    np.testing.assert_array_equal(first, again)
    for part, other in zip(state, same, strict=True):
        np.testing.assert_array_equal(part, other)  # no dropout


def test_train_is_in_training_mode(model):
    modes = []
    model.policy.world_model.encoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.learn(30)
    modes.clear()
    model.train(2, 4)
    assert modes == [True, True]


def test_checks_of_custom_networks_do_not_change_them():
    """The constructor calls an encoder once to check its output. This must not change its statistics."""
    model = DreamerV3(
        "MlpPolicy", counter_envs(), model_size="debug", device="cpu", policy_kwargs=dict(encoder_class=NormAndDropout)
    )
    assert not statistics(model).any()


def test_modules_in_eval_mode_stay_so_in_the_check():
    class Frozen(NormAndDropout):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self.norm.eval()

    class Decoder(nn.Module):
        def __init__(self, observation_space, deter, stoch, classes):
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(deter), nn.Linear(deter, 5)

        def forward(self, deter, stoch):
            return {"obs": SymlogMSE(self.layer(self.norm(deter)))}

    policy = make_policy(VECTOR, spaces.Discrete(2), encoder_class=Frozen)
    assert not policy.world_model.encoder.norm.training and policy.world_model.encoder.dropout.training
    policy = make_policy(VECTOR, spaces.Discrete(2), decoder_class=Decoder)
    assert not policy.world_model.decoder.norm.num_batches_tracked and policy.world_model.decoder.norm.training
