"""Weights of losses by their own size: the rule, its running mean, and what training does with it."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.loss_weights import HarmonyWeights
from sb3_dreamer.dreamerv3.heads import ContinueHead, TwoHotHead
from sb3_dreamer.dreamerv3.model_sizes import resolve_model_size
from tests.support.envs import NoiseEnv
from tests.support.helpers import TINY, counter_model

NAMES = ["reward", "continue", "reconstruction/obs"]


def weights_after(*sizes: float) -> float:
    weights = HarmonyWeights(["loss"])
    for size in sizes:
        weights.update(th.tensor([size]))
    return weights()["loss"].item()


@pytest.mark.parametrize("size", [1e-3, 0.02, 0.3, 0.49])
def test_a_weight_minimises_the_rectified_rule(size):
    """L / sigma + log(1 + sigma), by brute force."""
    sigma = np.exp(np.linspace(np.log(1e-3), np.log(1e5), 2_000_001))
    best = sigma[np.argmin(size / sigma + np.log1p(sigma))]
    assert weights_after(size) == pytest.approx(1 / best, rel=1e-4)
    assert weights_after(size) > 1


def test_weights_start_at_one_and_have_limits():
    assert weights_after() == 1.0
    assert weights_after(0.5) == weights_after(40.0) == weights_after(5000.0) == 1.0
    assert weights_after(0.0) == weights_after(-1e-6) == weights_after(1e-12) == 100.0


def test_a_large_loss_raises_the_weights_of_the_others():
    weights = HarmonyWeights(NAMES)
    weights.update(th.tensor([0.5, 2.0, 50.0]))  # alone: 1, 0.37 and 0.0196
    alone = [2 / (size + (size * size + 4 * size) ** 0.5) for size in (0.5, 2.0, 50.0)]
    assert list(weights().values()) == pytest.approx([one / alone[2] for one in alone], rel=1e-5)
    weights.update(th.tensor([0.5, 2.0, 5000.0]))
    assert weights()["reward"] == 100.0 and weights()["reconstruction/obs"] == 1.0


def test_reward_and_continue_never_weigh_less_than_an_observation():
    """A reward that cannot be predicted yet: alone its weight would be 1.6."""
    weights = HarmonyWeights([*NAMES, "reconstruction/goal"])
    weights.update(th.tensor([0.226, 1e-4, 0.01, 0.002]))
    alone = [2 / (size + (size * size + 4 * size) ** 0.5) for size in (1e-4, 0.01, 0.002)]
    assert list(weights().values()) == pytest.approx([alone[2], alone[0], alone[1], alone[2]], rel=1e-4)


def test_the_mean_is_running_and_not_biased_by_its_start():
    assert weights_after(0.2) == pytest.approx(weights_after(*[0.2] * 50), rel=1e-5)
    mean = (0.99 * 0.01 * 0.1 + 0.01 * 0.3) / (1 - 0.99**2)
    assert weights_after(0.1, 0.3) == pytest.approx(weights_after(mean), rel=1e-5) != weights_after(0.2)


def test_files_without_weights_load():
    weights = HarmonyWeights(NAMES)
    weights.update(th.ones(3))
    weights.load_state_dict({})
    assert set(weights()) == set(NAMES) and all(weight == 1.0 for weight in weights().values())


def test_no_model_is_below_the_entropy_of_its_targets():
    size = resolve_model_size("debug", False)
    reward, targets = TwoHotHead(size, 1), th.tensor([0.0, 1.0, -37.2, 1e6])
    _, shares = reward(th.zeros(4, size.features_dim)).two_hot(targets)
    expected = -(shares * shares.log()).nan_to_num().sum(-1)
    assert th.allclose(reward.target_entropy(targets), expected)
    assert expected[0] == 0 and expected[1] == pytest.approx(0.665, abs=1e-3)
    soft = th.tensor([0.0, 0.99, 1.0])
    best = F.binary_cross_entropy(soft, soft, reduction="none")
    assert th.allclose(ContinueHead.target_entropy(soft), best)


def dict_model(**kwargs) -> DreamerV3:
    space = spaces.Dict({"camera": spaces.Box(0, 255, (16, 16, 3), np.uint8), "state": spaces.Box(-1, 1, (2,))})
    return DreamerV3("MultiInputPolicy", NoiseEnv(space, spaces.Discrete(2)), seed=0, **{**TINY, **kwargs})


def test_training_measures_the_losses():
    """Noise: an image with a loss of tens, rewards and ends that nothing predicts."""
    model = dict_model(loss_scales="harmony").learn(120, log_interval=None)
    weights, means = model.policy.loss_weights(), model.policy.loss_weights.means
    assert list(weights) == ["reward", "continue", "reconstruction/camera", "reconstruction/state"]
    assert model.policy.loss_weights.n_updates == model._n_updates > 1
    metrics = model._metrics.means()  # over all updates, without the weights
    debiased = dict(zip(weights, (means / (1 - 0.99**model._n_updates)).tolist(), strict=True))
    for key in ("reconstruction/camera", "reconstruction/state"):
        kind, name = key.split("/")
        assert debiased[key] == pytest.approx(metrics[f"world_model/{kind}_loss/{name}"], rel=0.02)
    assert 0 < debiased["reward"] < metrics["world_model/reward_loss"]  # above the entropy of the targets
    assert weights["reconstruction/camera"] == metrics["world_model/weight/reconstruction/camera"] == 1.0


def test_the_total_is_the_weighted_sum():
    model = dict_model(loss_scales="harmony").learn(120)
    balance = model.policy.loss_weights
    balance.means.copy_(th.tensor([0.2, 0.1, 0.01, 0.001]))
    balance.n_updates.fill_(10_000.0)
    loss, weights = model.loss_module, balance()
    assert len(set(weights.values())) == 4
    with th.no_grad():
        output = loss(model.replay_buffer.sample(4))
    terms = {name: term.mean() for name, term in output.terms.items()}
    by_key = {key: output.metrics[f"world_model/reconstruction_loss/{key}"] for key in ("camera", "state")}
    expected = sum(weights[f"reconstruction/{key}"] * value for key, value in by_key.items())
    assert th.allclose(terms["reconstruction"], expected, rtol=1e-4)
    scales = {"dynamics": 1, "representation": 0.1, "actor": 1, "critic": 1, "replay_critic": 0.3, "reconstruction": 1}
    scales |= {"reward": weights["reward"], "continue": weights["continue"]}
    assert th.allclose(output.loss, sum(scale * terms[name] for name, scale in scales.items()), rtol=1e-4)


def test_a_loaded_model_goes_on_with_its_weights(tmp_path):
    model = counter_model(loss_scales="harmony").learn(60)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model")
    assert loaded.loss_scales == "harmony" and loaded.policy.loss_weights.n_updates == model._n_updates > 0
    assert th.equal(loaded.policy.loss_weights.means, model.policy.loss_weights.means)


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="`loss_scales` must be a dict of weights or 'harmony', got 'harmonic'"):
        counter_model(loss_scales="harmonic")
