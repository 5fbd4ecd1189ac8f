"""Fast path, plain path and reference give the same numbers: loss, terms, the gradient of every parameter, in float64."""

from types import SimpleNamespace

import pytest
import torch as th
from gymnasium import spaces

from benchmarks.speed.reference import Reference
from sb3_dreamer.common.type_aliases import ImaginationNoise, LatentState, UpdateNoise
from sb3_dreamer.dreamerv3 import imagination, scan, steps, world_model
from sb3_dreamer.dreamerv3.rssm import RSSM
from tests.support.helpers import (
    ACTION_SPACES,
    IMAGE,
    MIXED,
    VECTOR,
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
    """A model of random weights in float64, a batch with resets inside, latents to start from, and noise."""
    policy = make_policy(observation_space, action_space, **dimensions)
    randomize_outputs(policy)
    for parameter in policy.parameters():
        parameter.data += 0.1 * th.randn_like(parameter)  # biases and norms, too
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


def result_of(p):
    """Everything one evaluation of the objective gives; the return normaliser is reset."""
    reset_normalizer(p.policy)
    output = p.loss(p.batch, p.noise)
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
def test_all_paths_give_the_same_loss_and_gradients(space, action, dimensions, settings, request):
    p = problem(space, ACTION_SPACES[action], settings, **dimensions)
    assert scan.is_covered(p.policy.world_model.rssm)
    ours = {"fast": result_of(p)}
    request.getfixturevalue("plain_model")
    ours["plain"] = result_of(p)
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


def test_the_comparison_notices_a_reset_that_is_ignored(monkeypatch, request):
    """Neither path may pass by chance: a scan that forgets resets differs."""
    p = problem(VECTOR, ACTION_SPACES["discrete"])
    original = scan.observe
    monkeypatch.setattr(world_model, "observe", lambda *args: original(*args[:3], th.zeros_like(args[3]), *args[4:]))
    fast, _ = result_of(p)
    monkeypatch.undo()
    request.getfixturevalue("plain_model")
    plain, _ = result_of(p)
    assert relative_error(fast.loss, plain.loss) > 1e-4


@pytest.mark.parametrize("dimensions", [dict(dynamics_layers=2), dict(posterior_layers=2)], ids=str)
def test_other_layer_counts_take_the_plain_path(dimensions, monkeypatch):
    p = problem(VECTOR, ACTION_SPACES["discrete"], **dimensions)
    monkeypatch.setattr(scan.ObserveScan, "apply", None)
    monkeypatch.setattr(imagination, "imagine_fused", None)
    output, _ = result_of(p)
    assert th.isfinite(output.loss)


def test_a_subclass_of_the_recurrent_model_takes_the_plain_path():
    class Mine(RSSM):
        pass

    policy = make_policy(VECTOR, spaces.Discrete(2))
    assert scan.is_covered(policy.world_model.rssm)
    assert not scan.is_covered(Mine(8, 2, policy.size))


def test_class_indices_as_noise_are_taken_as_they_are():
    p = problem(VECTOR, ACTION_SPACES["discrete"])
    size = p.policy.size
    posterior = th.randint(size.classes, (BATCH, LENGTH, size.stoch))
    dream = th.randint(size.classes, (BATCH * LENGTH, 3, size.stoch))
    output = p.loss(p.batch, UpdateNoise(posterior, ImaginationNoise(dream, p.noise.imagination.actions)))
    assert th.equal(output.posterior.stoch.argmax(-1), posterior)
    assert th.equal(output.trajectory.latents.stoch[:, 1:].argmax(-1), dream)


def test_thresholds_give_the_samples_of_the_mixture():
    """Mixed with the uniform, 10 classes: the same class as asking the mixed distribution itself."""
    policy = make_policy(VECTOR, spaces.Discrete(2), stoch=50, classes=10, unimix=0.3)
    distribution = policy.world_model.rssm.prior(th.randn(200, policy.size.deter))
    noise = th.rand(200, 50)
    probs = th.softmax(distribution.logits, -1)
    sample = steps.sample_one_hot(probs, steps.sampling_thresholds(noise, 10, 0.3)).argmax(-1)
    assert (sample == distribution.sample(noise)).float().mean() > 0.9999
