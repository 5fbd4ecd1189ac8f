"""The policy: acting, the slow critic, settings."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.distributions import SymlogMSE
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.support.helpers import ACTION_SPACES, VECTOR, counter_model, make_policy, randomize_outputs

N, STEPS = 3, 5


def observations(n_steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n_steps, N, 5)).astype(np.float32)


def decided(space: spaces.Space, **kwargs) -> DreamerPolicy:
    """A policy whose actions depend on the observation."""
    policy = make_policy(VECTOR, space, **kwargs)
    th.nn.init.normal_(policy.actor.output.weight)
    return policy


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["discrete", "box"])
def test_acting_is_an_observation_step_and_the_actor(name, deterministic):
    """``predict`` with the carried state equals its parts. One environment starts a new episode at step 3."""
    policy = decided(ACTION_SPACES[name])
    rssm, latent, prev_action, state = policy.world_model.rssm, policy.world_model.rssm.initial(N), None, None
    for t, observed in enumerate(observations()):
        starts = np.array([t in (0, 3), t == 0, t == 0])
        th.manual_seed(t)
        actions, state = policy.predict(observed, state, starts, deterministic)
        th.manual_seed(t)
        with th.no_grad():
            noise = None if deterministic else th.rand(N, policy.size.stoch)
            if prev_action is None:
                prev_action = th.zeros(N, 3 if name == "discrete" else 2)
            embed = policy.world_model.encoder(th.as_tensor(observed))
            latent, _ = rssm.obs_step(latent, prev_action, embed, th.as_tensor(starts), noise)
            distribution = policy.actor(rssm.features(latent))
            chosen = distribution.mode() if deterministic else distribution.sample(policy.actor.draw_noise(N))
        if name == "discrete":
            prev_action = th.nn.functional.one_hot(chosen[:, 0], 3).float()
            np.testing.assert_array_equal(actions, chosen[:, 0])
        else:
            prev_action = chosen
            low, high = ACTION_SPACES["box"].low, ACTION_SPACES["box"].high
            np.testing.assert_allclose(
                actions, low + (chosen.clamp(-1, 1).numpy() + 1) / 2 * (high - low), rtol=1e-5, atol=1e-6
            )
        for part, expected in zip(state, (*latent, prev_action), strict=True):
            np.testing.assert_array_equal(part, expected)
        latent = LatentState(*latent)
    assert np.abs(state[0]).max() > 0.01


def test_deterministic_takes_the_modes():
    """Modes of the actor and of the posterior. Samples differ, but the modes are the most frequent."""
    policy = decided(ACTION_SPACES["discrete"])
    observed = observations()[0]
    mode, state = policy.predict(observed, deterministic=True)
    repeated = np.repeat(observed[:1], 2000, axis=0)
    with th.no_grad():
        embed = policy.world_model.encoder(th.as_tensor(observed))
        _, posterior = policy.world_model.rssm.obs_step(
            policy.world_model.rssm.initial(N), th.zeros(N, 3), embed, th.zeros(N), None
        )
    np.testing.assert_array_equal(state[1].argmax(-1), posterior.probs.argmax(-1))
    latents = policy.predict(repeated, episode_start=np.ones(2000))[1][1]
    counts = latents.sum(0)  # (S, K)
    np.testing.assert_allclose(counts / 2000, posterior.probs[0], atol=0.05)
    features = th.cat([th.as_tensor(state[0]), th.as_tensor(state[1]).flatten(1)], -1)
    with th.no_grad():
        np.testing.assert_array_equal(mode, policy.actor(features).probs[:, 0].argmax(-1))


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_each_row_of_a_batch_is_acted_on_alone(name):
    policy = decided(ACTION_SPACES[name])
    together, alone = None, [None] * N
    for t, observed in enumerate(observations()):
        actions, together = policy.predict(observed, together, deterministic=True)
        for i in range(N):
            action, alone[i] = policy.predict(observed[i], alone[i], np.array([t == 0]), deterministic=True)
            np.testing.assert_allclose(actions[i], action, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(together[0][i], alone[i][0][0], atol=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_the_slow_critic_moves_by_tau(tau):
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    randomize_outputs(policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.update_target(tau)
    for name, value in policy.state_dict().items():
        if name.startswith("critic_target."):
            critic = before[name.replace("critic_target.", "critic.")]
            th.testing.assert_close(value, (1 - tau) * before[name] + tau * critic, rtol=0, atol=1e-7)
        else:
            assert th.equal(value, before[name]), name
    assert not th.equal(before["critic_target.output.weight"], before["critic.output.weight"])


def test_the_slow_critic_starts_as_the_critic_and_is_not_trained():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    critic, slow = policy.critic.state_dict(), policy.critic_target.state_dict()
    assert all(th.equal(critic[name], slow[name]) for name in critic)
    trained = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(p) for p in policy.parameters()} - {id(p) for p in policy.critic_target.parameters()}
    assert not any(parameter.requires_grad for parameter in policy.critic_target.parameters())


def test_the_state_carries_the_past():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"], deter=32, hidden=16)
    observations = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)

    def run(state, episode_start, t):
        return policy.predict(observations[t], state, episode_start, deterministic=True)[1]

    first = run(None, None, 0)
    carried = run(first, np.array([False, False, True]), 1)
    fresh = run(None, None, 1)
    for part, new in zip(carried, fresh, strict=True):
        np.testing.assert_array_equal(part[2], new[2])  # an episode start resets the state
    assert np.abs(carried[0][:2] - fresh[0][:2]).max() > 1e-4  # otherwise it does not
    np.testing.assert_array_equal(carried[0], run(first, np.array([0.0, 0.0, 1.0]), 1)[0])  # floats are accepted
    # state=None has priority over episode_start=False
    np.testing.assert_array_equal(run(None, np.zeros(3, bool), 1)[0], fresh[0])


def test_settings_of_the_policy_are_saved(tmp_path):
    settings = dict(symlog_inputs=False, return_normalizer_decay=0.5, return_percentiles=(0.25, 0.75))
    model = counter_model(training_ratio=8, policy_kwargs=settings).learn(60)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for policy in (model.policy, DreamerV3.load(tmp_path / "model").policy, DreamerPolicy.load(tmp_path / "policy")):
        normalizer, world_model = policy.return_normalizer, policy.world_model
        assert normalizer.decay == 0.5 and normalizer.fractions.tolist() == [0.25, 0.75]
        assert not world_model.encoder.symlog_inputs
        assert not isinstance(world_model.decoder(th.zeros(1, 8), th.zeros(1, 2, 4))["obs"], SymlogMSE)
    default = counter_model().policy
    assert default.return_normalizer.decay == 0.99 and default.world_model.encoder.symlog_inputs
    assert default.return_normalizer.fractions.tolist() == pytest.approx([0.05, 0.95])
    assert isinstance(default.world_model.decoder(th.zeros(1, 8), th.zeros(1, 2, 4))["obs"], SymlogMSE)
    with pytest.raises(ValueError, match="policy kwargs"):
        DreamerV3.load(tmp_path / "model", policy_kwargs={**settings, "symlog_inputs": True})


def test_settings_of_the_policy_change_the_run():
    runs = [dict(), dict(symlog_inputs=False), dict(return_normalizer_decay=0.0), dict(return_percentiles=(0.4, 0.6))]
    seen = [counter_model(training_ratio=8, policy_kwargs=kwargs).learn(45).policy for kwargs in runs]
    lows = [policy.return_normalizer.low.item() for policy in seen]
    assert len(set(lows)) == 4


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(return_normalizer_decay=1.0),
        dict(return_normalizer_decay=-0.1),
        dict(return_normalizer_decay="slow"),
        dict(return_normalizer_decay=float("nan")),
        dict(return_percentiles=(5, 95)),
        dict(return_percentiles=(0.95, 0.05)),
        dict(return_percentiles=0.9),
        dict(return_percentiles=(0.1, 0.5, 0.9)),
        dict(symlog_inputs="auto"),
        dict(symlog_inputs=False, encoder_class=th.nn.Identity, decoder_class=th.nn.Identity),
    ],
)
def test_settings_of_the_policy_are_checked(kwargs):
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}"):
        counter_model(policy_kwargs=kwargs)
