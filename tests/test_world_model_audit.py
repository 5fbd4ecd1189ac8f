"""The audit: its numbers by hand, and its verdict on a model whose faults are known."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dreamer import DreamerV3, audit_world_model, preset
from sb3_dreamer.common.envs.counter import CounterEnv
from sb3_dreamer.common.type_aliases import SequenceIndices
from sb3_dreamer.world_model_audit import (
    calibration,
    groups_of,
    no_knowledge_error,
    seen_returns,
    share_known_by_prior,
    step_errors,
    steps_foreseen,
)
from tests.support.helpers import TINY, counter_envs


class SameEpisode(CounterEnv):
    """Every episode has number 0, so observations and rewards are known from the step alone."""

    def reset(self, **kwargs):
        self.episode = -1
        return super().reset(**kwargs)


@pytest.fixture(scope="module")
def model():
    world_model = dict(batch_size=16, batch_length=12, free_nats=0.1, loss_scales="harmony")
    fast = dict(learning_rate=1e-2, lr_warmup_steps=20, training_ratio=0.5, imagination_horizon=2, imagine_last=2)
    model = DreamerV3("MlpPolicy", DummyVecEnv([SameEpisode] * 2), seed=0, **{**TINY, **world_model, **fast})
    model.learn(400)
    model.train(250, 16)
    return model


def faults(model):
    found = [one for one in audit_world_model(model, 128, 3, 6).findings if one.is_fault]
    return {part: "\n".join(one.text for one in found if one.part == part) for part, *_ in found}


def errors_of(predicted, seen, is_valid, sizes=None, groups=None, least_scale=0.0):
    sizes = np.ones_like(predicted) if sizes is None else sizes
    return step_errors(predicted, seen, is_valid, np.arange(len(seen)) if groups is None else groups, sizes, least_scale)


def test_bias_from_a_step_on():
    rng = np.random.default_rng(0)
    seen = rng.normal(1.0, 0.5, size=(200, 10))
    is_valid = np.ones((200, 10), dtype=bool)
    honest = errors_of(seen + rng.normal(0.0, 0.3, size=seen.shape), seen, is_valid)
    assert not honest.is_fault and honest.error == pytest.approx(np.full(10, 0.24), abs=0.05)
    shifted = seen + rng.normal(0.0, 0.3, size=seen.shape) + 0.4 * (np.arange(10) >= 5)
    errors = errors_of(shifted, seen, is_valid)
    assert errors.is_fault and errors.step == 6 and errors.later_bias == pytest.approx(0.4, abs=0.03)
    assert errors.bias == pytest.approx([0.0] * 5 + [0.4] * 5, abs=0.08)
    is_valid[:, 5:] = False  # unobserved episodes are not looked at
    errors = errors_of(shifted, seen, is_valid)
    assert not errors.is_fault and np.isnan(errors.bias[5:]).all()
    assert not errors_of(seen + 0.15, seen, is_valid).is_fault  # certain, but small
    sizes = np.tile(np.arange(10.0), (200, 1))
    errors = errors_of(seen + 0.4 * sizes, seen, np.ones_like(is_valid), sizes)
    assert errors.is_fault and errors.later_bias / errors.scale == pytest.approx(0.4)
    nothing = errors_of(seen + 0.3, seen, is_valid, np.zeros_like(seen))
    assert nothing.is_fault and nothing.step == 1 and nothing.scale == 1.0 and nothing.seen == 0.0
    assert not errors_of(seen + 0.3, seen, is_valid, np.zeros_like(seen), least_scale=2.0).is_fault


def test_a_larger_bias_is_not_hidden_by_a_more_certain_one():
    rng = np.random.default_rng(0)
    difference = -0.01 + 0.001 * rng.normal(size=(200, 10))
    difference[:, 8:] += -0.5 + 0.5 * rng.normal(size=(200, 2))
    errors = errors_of(difference, np.zeros_like(difference), np.ones_like(difference, dtype=bool))
    assert errors.is_fault and errors.step == 9 and errors.later_bias == pytest.approx(-0.5, abs=0.1)


def test_few_or_overlapping_sequences_are_no_evidence():
    is_valid = np.zeros((256, 15), dtype=bool)
    is_valid[:, :14], is_valid[0, 14] = True, True
    for seed in range(20):
        difference = np.random.default_rng(seed).normal(size=(256, 15))
        assert not errors_of(difference, np.zeros_like(difference), is_valid).is_fault
    biased, everywhere = np.full((60, 5), 0.5), np.ones((60, 5), dtype=bool)
    assert errors_of(biased, 0 * biased, everywhere).is_fault
    assert not errors_of(biased, 0 * biased, everywhere, groups=np.arange(60) % 9).is_fault  # nine places in the buffer


def test_groups_are_places_in_the_buffer():
    steps, envs = np.array([[0], [7], [8], [7], [0]]) + np.arange(8), np.array([0, 0, 0, 1, 0])
    assert groups_of(SimpleNamespace(indices=SequenceIndices(steps, envs))).tolist() == [0, 0, 1, 2, 0]


def test_one_deviating_sequence_is_no_fault():
    difference = np.zeros((50, 8))
    difference[0] = 30.0  # mean bias 0.6, from a single sequence
    assert not errors_of(difference, np.zeros_like(difference), np.ones_like(difference, dtype=bool)).is_fault


def test_calibration():
    predicted, seen = np.arange(100.0), np.arange(100.0) * 2
    result = calibration(predicted[::-1], seen[::-1])
    assert result.predicted.tolist() == (np.arange(10) * 10 + 4.5).tolist()
    assert result.seen.tolist() == (result.predicted * 2).tolist()
    assert len(calibration(np.zeros(3), np.zeros(3)).seen) == 3


def test_returns_of_the_replay_buffer():
    # Row 2 terminates, row 4 is truncated; rows 3 and 5 start new episodes.
    batch = SimpleNamespace(
        rewards=th.tensor([[0.0, 1.0, 2.0, 0.0, 4.0, 0.0, 8.0]]),
        is_last=th.tensor([[0, 0, 1, 0, 1, 0, 0]]).bool(),
        is_terminal=th.tensor([[0, 0, 1, 0, 0, 0, 0]]).bool(),
    )
    values = np.array([[9.0, 9.0, 9.0, 9.0, 5.0, 9.0, 6.0]])
    returns, weight = seen_returns(batch, values, 0.5)
    assert returns[0].tolist() == [1.0 + 0.5 * 2.0, 2.0, 9.0, 4.0 + 0.5 * 5.0, 5.0, 8.0 + 0.5 * 6.0, 6.0]
    assert weight[0].tolist() == [1.0, 1.0, 0.0, 0.5, 0.0, 0.5, 0.0]


def test_a_critic_that_is_wrong_everywhere():
    """A reward of 1 forever: the return is 100 with gamma 0.99. The values are 200, also where a window ends."""
    zeros = th.zeros(30, 20, dtype=th.bool)
    batch = SimpleNamespace(rewards=th.ones(30, 20), is_last=zeros, is_terminal=zeros)
    values = np.full((30, 20), 200.0) + np.random.default_rng(0).normal(0, 1e-3, (30, 20))
    returns, weight = seen_returns(batch, values, 0.99)
    result = calibration(values.ravel(), returns.ravel(), weight.ravel())
    assert result.predicted == pytest.approx(np.full(10, 200.0), abs=0.1)
    assert result.seen == pytest.approx(np.full(10, 100.0), abs=1.0)


def test_steps_that_an_end_is_foreseen():
    nan = np.nan
    assert steps_foreseen(np.array([0.9, 0.6, 0.4, 0.9])) == 2
    assert steps_foreseen(np.array([nan, 0.6, nan, nan])) == 2
    assert steps_foreseen(np.array([nan, nan])) == 0 == steps_foreseen(np.array([0.1, 0.9]))
    assert steps_foreseen(np.array([nan, nan, nan, 0.1])) == 0 and steps_foreseen(np.array([0.9, nan, 0.1])) == 1


def test_error_of_the_most_frequent_class():
    space = CounterEnv().action_space
    assert no_knowledge_error(space, np.array([[0, 1, 1, 1], [2, 1, 1, 1]])) == 0.25
    assert no_knowledge_error(CounterEnv().observation_space, np.zeros((2, 4, 3))) == 1.0


def test_honest_model_passes(model):
    audit = audit_world_model(model, 128, 3, 6)
    assert audit.is_passed, f"\n{audit}"
    assert audit.heads["reward"].error[0] < 0.5
    # Rows 0 to 7 of an episode: from row 2 on, the end is at most 5 rows away.
    assert steps_foreseen(audit.ends) >= 4
    assert audit.prior_share > 0.5 and max(audit.reconstructions.values()) < 0.5
    assert "FAULT" not in str(audit) and len(str(audit).splitlines()) == 9
    axes = audit.figure().axes
    assert [axis.get_title() for axis in axes[:3]] == ["reward", "continue", "value"]
    assert len(axes[0].lines[0].get_xdata()) == 6


def spoil(model, monkeypatch, kind):
    """Put a known fault into a model."""
    world_model = model.policy.world_model
    if kind == "decoder":  # blind: it does not see the latent state
        observations = type(world_model.decoder).observations
        blind = lambda *latents: observations(world_model.decoder, *(0 * part for part in latents))  # noqa: E731
        monkeypatch.setattr(world_model.decoder, "observations", blind)
    elif kind == "prior":  # frozen: the same distribution after every state
        logits = world_model.rssm.prior_net.logits
        monkeypatch.setattr(logits, "forward", lambda x: x.new_zeros(*x.shape[:-1], logits.out_features))
    else:  # 40 % more reward, the same reward for every state, ends where there are none, larger values without observation
        head, change = {
            "reward": (world_model.reward_head, lambda mean: mean + 0.4 * mean.abs()),
            "blind reward": (world_model.reward_head, lambda mean: 0 * mean + mean.mean()),
            "continue": (world_model.continue_head, lambda mean: 0.8 * mean),
            "blind continue": (world_model.continue_head, lambda mean: 0 * mean + mean.mean()),
        }[kind]
        forward = type(head).forward
        spoilt = lambda features: SimpleNamespace(mean=lambda: change(forward(head, features).mean()))  # noqa: E731
        monkeypatch.setattr(head, "forward", spoilt)


WORDS = {
    "decoder": "is reconstructed no better than by its mean",
    "prior": "of what the posterior knows",
    "reward": "too high from step 1 on.",
    "blind reward": "Rewards are known no better than by their mean",
    "continue": "Ends predicted in",
    "blind continue": "Ends of episodes are known no better than by their mean",
}


@pytest.mark.parametrize("kind", sorted(WORDS))
def test_a_known_fault_is_named(model, kind, monkeypatch):
    spoil(model, monkeypatch, kind)
    found = faults(model)
    part = kind.removeprefix("blind ")
    assert WORDS[kind] in found[part]
    if kind != "prior":  # whose fault spoils the predictions of all heads
        assert set(found) == {part}
    if kind == "reward":
        percent = int(found["reward"].split(": ")[1].split("%")[0])
        assert 30 <= percent <= 50


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_share_known_by_the_prior(model, weight, monkeypatch):
    """The prior is a mixture of the posterior (share 1) and of the mean posterior (share 0)."""
    batch, rssm = model.replay_buffer.sample_sequences(32, 9, np.random.default_rng(0)), model.policy.world_model.rssm
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        _, posterior = model.policy.world_model.observe(batch, th.rand(32, 9, rssm.size.stoch, generator=generator))
        mean = posterior.probs.mean((0, 1))
        mixed = (weight * posterior.probs + (1 - weight) * mean).log()
        monkeypatch.setattr(rssm, "prior", lambda deter: SimpleNamespace(log_probs=mixed))
        to_mean = (posterior.probs * (posterior.log_probs - mean.log())).sum((-2, -1)).mean()
        to_mixed = (posterior.probs * (posterior.log_probs - mixed)).sum((-2, -1)).mean()
        share = share_known_by_prior(model.policy, batch, seed=0)
    assert share == pytest.approx({0.0: 0.0, 0.5: float(1 - to_mixed / to_mean), 1.0: 1.0}[weight], abs=1e-4)
    assert 0.3 < share < 0.99 or weight != 0.5


def test_audit_changes_nothing(model):
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    states = th.get_rng_state(), np.random.get_state()[1].copy()
    audits = [audit_world_model(model, 8, 2, 4, seed=seed) for seed in (1, 1, 2)]
    assert str(audits[0]) == str(audits[1]) and (audits[0].heads["reward"].bias == audits[1].heads["reward"].bias).all()
    assert (audits[0].heads["reward"].bias != audits[2].heads["reward"].bias).any()
    assert all((value == before[key]).all() for key, value in model.policy.state_dict().items())
    assert (th.get_rng_state() == states[0]).all() and (np.random.get_state()[1] == states[1]).all()


def test_errors():
    model = DreamerV3("MlpPolicy", counter_envs(), seed=0, **TINY)
    with pytest.raises(ValueError, match="no sequence of 20 rows"):
        audit_world_model(model)
    with pytest.raises(ValueError, match="`horizon` must be at least 1, got 0"):
        audit_world_model(model, horizon=0)


class Bandit(gym.Env):
    """Every episode has one step, so only one step can be predicted. Two parts never change."""

    observation_space = spaces.Dict({"kind": spaces.Discrete(3), "x": spaces.Box(-1, 1, (2,)), "y": spaces.Box(-1, 1, (1,))})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"kind": 1, "x": self.np_random.uniform(-1, 1, 2).astype(np.float32), "y": np.zeros(1, np.float32)}, {}

    def step(self, action):
        return self.reset()[0], float(action), True, False, {}


@pytest.mark.filterwarnings("error")
def test_little_to_predict():
    model = DreamerV3("MultiInputPolicy", Bandit(), seed=0, **TINY).learn(60)
    audit = audit_world_model(model, 16, 1, 5)
    texts = [one.text for one in audit.findings if one.part == "decoder"]
    assert texts[0] == "obs/kind does not change." and texts[2] == "obs/y does not change."
    bias = audit.heads["reward"].bias
    assert np.isfinite(bias[0]) and np.isnan(bias[1:]).all() and not audit.heads["reward"].is_fault
    audit.figure()


@pytest.mark.slow
def test_t_maze(monkeypatch):
    """The reward at the end depends on the cue in the first row, which only the memory knows."""
    model = DreamerV3("MlpPolicy", make_vec_env("sb3_dreamer/TMaze-v0", 4, seed=1), seed=1, **preset("small"))
    model.learn(5_000)
    audit = audit_world_model(model, 256, 3, 10)
    assert audit.is_passed, f"\n{audit}"
    rewards = audit.calibrations["reward"]
    assert rewards.predicted[0] == pytest.approx(-1.0, abs=0.2) == pytest.approx(rewards.seen[0], abs=0.2)
    assert steps_foreseen(audit.ends) >= 3
    for kind in ("decoder", "prior", "reward", "continue"):
        with monkeypatch.context() as context:
            spoil(model, context, kind)
            assert kind in {one.part for one in audit_world_model(model, 256, 3, 10).findings if one.is_fault}
