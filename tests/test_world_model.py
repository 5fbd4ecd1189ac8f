"""The world model: encoding of sequences, and each loss term."""

import math

import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.distributions import symexp, symlog
from tests.support.helpers import IMAGE, MIXED, VECTOR, make_loss, make_policy, random_batch, randomize_outputs

B, T = 3, 5
SETTINGS = dict(free_nats=1.0, gamma=0.9)


def observed(space=MIXED):
    """:return: a world model, a batch, and the results of ``observe``"""
    policy = make_policy(space, spaces.Discrete(3))
    randomize_outputs(policy)
    batch = random_batch(policy, B, T)
    states, posterior = policy.world_model.observe(batch, th.rand(B, T, policy.size.stoch))
    return policy.world_model, batch, states, posterior


@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_a_sequence_is_encoded_row_by_row(space):
    world_model, batch, *_ = observed(space)
    embed = world_model.encode(batch.observations)
    assert embed.shape == (B, T, world_model.encoder.features_dim)
    for t in range(T):
        rows = batch.observations
        rows = {key: value[:, t] for key, value in rows.items()} if isinstance(rows, dict) else rows[:, t]
        th.testing.assert_close(embed[:, t], world_model.encoder(rows))


def test_each_loss_term():
    world_model, batch, states, posterior = observed()
    losses, _, metrics = world_model.loss(batch, states, posterior, **SETTINGS)
    assert list(losses) == ["reconstruction", "reward", "continue", "dynamics", "representation"]
    assert all(loss.shape == (B, T) for loss in losses.values())
    features = th.cat([states.deter, states.stoch.flatten(-2)], -1)
    p = world_model.continue_head(features).mean()
    target = th.where(batch.is_terminal, 0.0, 0.9)
    th.testing.assert_close(losses["continue"], -(target * p.log() + (1 - target) * (1 - p).log()))
    th.testing.assert_close(losses["reward"], world_model.reward_head(features).loss(batch.rewards))
    # Reconstruction: one row and one key at a time.
    targets = world_model.decoder.targets({key: value.flatten(0, 1) for key, value in batch.observations.items()})
    total = th.zeros(B, T)
    for b in range(B):
        for t in range(T):
            for key, distribution in world_model.decoder(states.deter[b, t : t + 1], states.stoch[b, t : t + 1]).items():
                row = targets[key][b * T + t].unsqueeze(0)
                total[b, t] += distribution.loss(row)[0]
    th.testing.assert_close(losses["reconstruction"], total)
    by_key = [metrics[f"world_model/reconstruction_loss/{key}"] for key in MIXED.spaces]
    th.testing.assert_close(sum(by_key), total.mean())
    # Both KL terms have the same value, with the free nats as lower bound.
    kl = posterior.kl(world_model.rssm.prior(states.deter)).sum(-1)
    for name in ("dynamics", "representation"):
        th.testing.assert_close(losses[name], kl.clamp_min(1.0))


def test_the_entropies_are_of_whole_latents():
    world_model, batch, states, posterior = observed(VECTOR)
    with th.no_grad():
        for net in (world_model.rssm.prior_net, world_model.rssm.posterior_net):
            net.logits.weight.zero_()
            net.logits.bias.zero_()
    states, posterior = world_model.observe(batch, th.rand(B, T, 2))
    *_, metrics = world_model.loss(batch, states, posterior, **SETTINGS)
    assert metrics.keys() == {"world_model/prior_entropy", "world_model/posterior_entropy"}  # only one key
    for value in metrics.values():
        assert value.item() == pytest.approx(2 * math.log(4), rel=1e-5)  # two groups of four classes


def test_terminal_rows_only_affect_the_continue_head():
    world_model, batch, states, posterior = observed()
    plain, *_ = world_model.loss(batch, states, posterior, **SETTINGS)
    flipped, *_ = world_model.loss(batch._replace(is_terminal=~batch.is_terminal), states, posterior, **SETTINGS)
    assert (plain["continue"] != flipped["continue"]).all()
    assert all(th.equal(plain[name], flipped[name]) for name in plain if name != "continue")


def test_the_weight_of_a_key_scales_its_loss():
    world_model, batch, states, posterior = observed()

    def reconstruction(scales):
        return world_model.loss(batch, states, posterior, **SETTINGS, key_scales=scales)[0]["reconstruction"]

    by_key = world_model.reconstruction_losses(states, batch.observations)
    assert by_key.keys() == MIXED.spaces.keys()
    for key, loss in by_key.items():
        alone = {other: float(other == key) for other in by_key}
        assert th.equal(reconstruction(alone), loss)
        assert th.equal(reconstruction({**alone, key: 4.0}), 4 * loss)
    assert not reconstruction(dict.fromkeys(by_key, 0.0)).any()


def test_weights_of_single_keys():
    policy = make_policy(MIXED, spaces.Discrete(3))
    batch, noise = random_batch(policy), make_loss(policy).draw_noise(4, 8)

    def reconstruction(scales):
        loss = make_loss(policy, loss_scales={"reconstruction": scales})
        output = loss(batch, noise)
        return output.terms["reconstruction"].mean() * loss.loss_scales["reconstruction"], output.metrics

    plain, metrics = reconstruction(1.0)
    by_key = {key: metrics[f"world_model/reconstruction_loss/{key}"] for key in MIXED.spaces}
    assert th.allclose(sum(by_key.values()), plain)
    weighted, _ = reconstruction({"position": 10.0, "camera": 0.0})
    assert th.allclose(weighted, plain + 9 * by_key["position"] - by_key["camera"])
    with pytest.raises(ValueError, match=r"must name keys that are reconstructed: \['position'\], got \['camera'\]"):
        make_loss(
            make_policy(MIXED, spaces.Discrete(3), decoder_keys=["position"]), loss_scales={"reconstruction": {"camera": 1.0}}
        )


def test_vectors_as_they_are():
    """Inputs and predictions of vectors change; those of all other keys do not."""
    plain, raw = (make_policy(MIXED, spaces.Discrete(3), symlog_inputs=switch).world_model for switch in (True, False))
    batch = random_batch(make_policy(MIXED, spaces.Discrete(3)))
    observations = {key: value.flatten(0, 1) for key, value in batch.observations.items()}
    logged = {**observations, "position": symlog(observations["position"])}
    assert (observations["position"].abs() > 1.5).any()
    assert th.equal(raw.encoder(logged), plain.encoder(observations))
    assert not th.allclose(raw.encoder(observations), plain.encoder(observations))
    deter, stoch = th.randn(32, plain.rssm.initial(1).deter.shape[1]), th.randn(32, *plain.rssm.initial(1).stoch.shape[1:])
    ours, theirs = raw.decoder(deter, stoch), plain.decoder(deter, stoch)
    values, targets = ours["position"].mode(), raw.decoder.targets(observations)
    th.testing.assert_close(symexp(values), theirs["position"].mode())
    expected = (values - observations["position"]).pow(2).sum(-1)
    th.testing.assert_close(ours["position"].loss(targets["position"]), expected)
    for key in set(MIXED.spaces) - {"position"}:
        assert th.equal(ours[key].loss(targets[key]), theirs[key].loss(targets[key])), key
