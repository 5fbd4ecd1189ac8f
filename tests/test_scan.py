"""Fast path, step-by-step path and reference agree in float64: loss, terms, the gradient of every parameter."""

from types import SimpleNamespace

import pytest
import torch as th
from gymnasium import spaces

from benchmarks.speed.reference import Reference
from sb3_dreamer.common.type_aliases import ImaginationNoise, LatentState, UpdateNoise
from sb3_dreamer.dreamerv3.fast import cells
from sb3_dreamer.dreamerv3.fast import loss as loss_file
from sb3_dreamer.dreamerv3.fast.loss import FusedDreamerLoss
from sb3_dreamer.dreamerv3.fast.weights import supports_fused
from sb3_dreamer.dreamerv3.heads import ActorHead
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.rssm import RSSM
from tests.support.helpers import (
    ACTION_SPACES,
    IMAGE,
    MIXED,
    VECTOR,
    counter_model,
    double,
    make_loss,
    make_policy,
    random_batch,
    randomize_outputs,
)

LENGTH, BATCH = 7, 3
SETTINGS = dict(imagination_horizon=3, gamma=0.99, return_lambda=0.95, ent_coef=3e-2, free_nats=0.1)
CASES = [
    (VECTOR, "discrete"),
    (VECTOR, "box"),
    (IMAGE, "multi_discrete"),
    (MIXED, "multi_binary"),
]


def problem(observation_space, action_space, settings=None, **dimensions):
    """A model with random weights in float64, a batch with resets, initial latents, and noise."""
    policy = make_policy(observation_space, action_space, **dimensions)
    randomize_outputs(policy)
    for parameter in policy.parameters():
        parameter.data += 0.1 * th.randn_like(parameter)  # including biases and norms
    policy.double()
    batch = double(random_batch(policy, BATCH, LENGTH))
    assert batch.is_first[:, 1:].any()
    deter, stoch = policy.world_model.rssm.initial(BATCH)
    filled = LatentState(th.randn_like(deter).tanh(), stoch.clone())
    filled.stoch[..., 1] = 1.0
    settings = {**SETTINGS, **(settings or {})}
    loss = make_loss(policy, **settings)
    noise = double(loss.draw_noise(BATCH, LENGTH))
    return SimpleNamespace(policy=policy, loss=loss, batch=batch._replace(initial=filled), noise=noise, settings=settings)


def reset_normalizer(policy):
    for buffer in (policy.return_normalizer.low, policy.return_normalizer.high):
        buffer.zero_()


def gradients(loss, policy):
    names, parameters = zip(*((n, q) for n, q in policy.named_parameters() if q.requires_grad), strict=True)
    return dict(zip(names, th.autograd.grad(loss, parameters), strict=True))


def result_of(p, fused="auto"):
    """All results of one evaluation of the objective. The return normaliser is reset first."""
    reset_normalizer(p.policy)
    objective = make_loss(p.policy, fused=fused, **p.settings)
    assert type(objective) is (FusedDreamerLoss if fused else DreamerLoss)
    output = objective(p.batch, p.noise)
    return output, gradients(output.loss, p.policy)


def relative_error(ours, reference):
    return float((ours - reference).detach().norm() / reference.detach().norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("space", "action"), CASES, ids=lambda value: value if isinstance(value, str) else type(value).__name__
)
@pytest.mark.parametrize(
    ("dimensions", "settings"),
    [({}, {}), (dict(prior_layers=1, actor_layers=1, blocks=2, actor_unimix=0.1), dict(imagine_last=4))],
    ids=["debug", "other layers"],
)
def test_all_paths_give_the_same_loss_and_gradients(space, action, dimensions, settings):
    p = problem(space, ACTION_SPACES[action], settings, **dimensions)
    ours = {"fused": result_of(p), "plain": result_of(p, fused=False)}
    reset_normalizer(p.policy)
    loss, terms = Reference(p.policy, **p.settings).loss(p.batch, p.noise)
    expected = gradients(loss, p.policy)
    assert loss.dtype == th.float64
    for path, (output, got) in ours.items():
        assert relative_error(output.loss, loss) < 1e-9, path
        for name, term in terms.items():
            assert relative_error(output.terms[name], term) < 1e-9, (path, name)
        wrong = {name: relative_error(got[name], gradient) for name, gradient in expected.items()}
        assert max(wrong.values()) < 1e-9, (path, max(wrong.items(), key=lambda item: item[1]))


def test_the_comparison_detects_ignored_resets(monkeypatch):
    """A scan that ignores resets gives different results."""
    p = problem(VECTOR, ACTION_SPACES["discrete"])
    right = loss_file.observe_fused
    monkeypatch.setattr(loss_file, "observe_fused", lambda *args: right(*args[:3], th.zeros_like(args[3]), *args[4:]))
    fused, _ = result_of(p)
    plain, _ = result_of(p, fused=False)
    assert relative_error(fused.loss, plain.loss) > 1e-4


@pytest.mark.parametrize("dimensions", [dict(dynamics_layers=2), dict(posterior_layers=2)], ids=str)
def test_other_layer_counts_are_trained_step_by_step(dimensions):
    p = problem(VECTOR, ACTION_SPACES["discrete"], **dimensions)
    assert type(p.loss) is DreamerLoss and th.isfinite(p.loss(p.batch, p.noise).loss)


def test_subclasses_of_the_model_are_trained_step_by_step():
    class MyRSSM(RSSM):
        pass

    class MyActor(ActorHead):
        pass

    policy = make_policy(VECTOR, spaces.Discrete(2))
    assert supports_fused(policy.world_model.rssm, policy.actor)
    assert not supports_fused(MyRSSM(8, 2, policy.size), policy.actor)
    assert not supports_fused(policy.world_model.rssm, MyActor(spaces.Discrete(2), policy.size))


@pytest.mark.parametrize("fused", ["auto", False])
def test_the_argument_chooses_the_objective(fused):
    model = counter_model(fused=fused).learn(60)
    assert type(model.loss_module) is (DreamerLoss if fused is False else FusedDreamerLoss) and model._n_updates > 0
    model.fused = "auto"
    model.learn(6, reset_num_timesteps=False)
    assert type(model.loss_module) is FusedDreamerLoss


def test_both_objectives_make_the_same_updates():
    """The same seed gives the same updates, up to rounding in float32."""
    fused, plain = (counter_model(fused=choice).learn(60).policy.state_dict() for choice in ("auto", False))
    assert all(th.allclose(fused[name], plain[name], atol=1e-4) for name in plain)


def test_class_indices_as_noise_are_used_directly():
    p = problem(VECTOR, ACTION_SPACES["discrete"])
    size = p.policy.size
    posterior = th.randint(size.classes, (BATCH, LENGTH, size.stoch))
    imagined = th.randint(size.classes, (BATCH * LENGTH, 3, size.stoch))
    output = p.loss(p.batch, UpdateNoise(posterior, ImaginationNoise(imagined, p.noise.imagination.actions)))
    assert th.equal(output.states.stoch.argmax(-1), posterior)
    assert th.equal(output.trajectory.latents.stoch[:, 1:].argmax(-1), imagined)


def test_thresholds_give_the_samples_of_the_mixture():
    """Unimix with 10 classes: the same samples as from the mixed distribution."""
    policy = make_policy(VECTOR, spaces.Discrete(2), stoch=50, classes=10, unimix=0.3)
    distribution = policy.world_model.rssm.prior(th.randn(200, policy.size.deter))
    noise = th.rand(200, 50)
    probs = th.softmax(distribution.logits, -1)
    sample = cells.sample_one_hot(probs, cells.sampling_thresholds(noise, 10, 0.3)).argmax(-1)
    assert (sample == distribution.sample(noise)).float().mean() > 0.9999
