"""bf16 by autocast: close to fp32, and selected tensors stay float32."""

import numpy as np
import pytest
import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.preprocessing import as_tensor_dict
from sb3_dreamer.common.type_aliases import ImaginationNoise, UpdateNoise
from sb3_dreamer.dreamerv3.imagination import imagine
from tests.support.helpers import (
    ACTION_SPACES,
    IMAGE,
    MIXED,
    VECTOR,
    counter_model,
    make_loss,
    make_policy,
    random_batch,
)

SPACES = {"vector": VECTOR, "image": IMAGE, "dict": MIXED}


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_precision(precision):
    model = counter_model(precision=precision, training_ratio=8)
    seen = []
    model.policy.actor.output.register_forward_hook(lambda m, inputs, output: seen.append(output.dtype))
    model.learn(60)
    assert set(seen) == {th.bfloat16 if precision == "bf16" else th.float32}  # auto is fp32 on a CPU
    assert all(p.dtype == th.float32 for p in model.policy.parameters())
    for state in model.policy.optimizer.state.values():
        assert all(value.dtype == th.float32 for value in state.values() if th.is_tensor(value) and value.numel() > 1)
    assert np.isfinite(model._metrics.means()["train/loss"])


def forced_noise(policy, loss, batch) -> UpdateNoise:
    """Use the classes sampled in fp32, so that rounding cannot change a sample."""
    noise = loss.draw_noise(*batch.rewards.shape)
    with th.no_grad():
        output = loss(batch, noise)
    actions = noise.imagination.actions
    if policy.actor.sizes is not None:
        actions = output.trajectory.actions
    return UpdateNoise(
        output.states.stoch.argmax(-1),
        ImaginationNoise(output.trajectory.latents.stoch[:, 1:].argmax(-1), actions),
    )


def randomize_heads(policy) -> None:
    """As after some training: the scalar heads predict small numbers that depend on the state."""
    for head in (policy.world_model.reward_head, policy.critic, policy.critic_target):
        th.nn.init.normal_(head.output.weight, std=0.1)
        bins = head.output.bias.shape[0]
        head.output.bias.data.copy_(-0.05 * (th.arange(bins) - bins // 2) ** 2)


def darken(batch):
    """Darken images, because the gradient of an untrained decoder is almost zero for a mean grey image."""
    observations = as_tensor_dict(batch.observations)
    dark = {key: value // 3 if value.dtype == th.uint8 else value for key, value in observations.items()}
    return batch._replace(observations=dark if isinstance(batch.observations, dict) else dark["obs"])


@pytest.mark.parametrize("action_space", [ACTION_SPACES["discrete"], ACTION_SPACES["box"]], ids=["discrete", "box"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_losses_and_gradients_are_close(space, action_space):
    """Loss within 2%, the cosine of every tensor's gradient above 0.99."""
    policy = make_policy(space, action_space)
    randomize_heads(policy)
    loss = make_loss(policy, free_nats=0.0)
    batch = darken(random_batch(policy, batch_size=16))
    noise = forced_noise(policy, loss, batch)
    losses, terms, gradients = [], [], []
    for precision in ("fp32", "bf16"):
        policy.precision = precision
        policy.return_normalizer.low.zero_(), policy.return_normalizer.high.zero_()
        policy.zero_grad()
        with policy.autocast():
            output = loss(batch, noise)
        output.loss.backward()
        losses.append(output.loss.item())
        terms.append({name: term.mean().item() for name, term in output.terms.items()})
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad})
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for name, value in terms[0].items():
        assert terms[1][name] == pytest.approx(value, rel=0.02, abs=0.02), name
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        cosine = F.cosine_similarity(gradient.flatten(), gradients[1][name].flatten(), dim=0)
        assert cosine > 0.99, (name, cosine)


@pytest.fixture(params=["discrete", "box"])
def bf16(request):
    policy = make_policy(MIXED, ACTION_SPACES[request.param], precision="bf16")
    batch = random_batch(policy)
    return policy, batch


def test_matmuls_are_bf16(bf16):
    policy, batch = bf16
    seen = {}
    for name, module in policy.named_modules():
        if name.startswith("critic_target") or not isinstance(module, (th.nn.Linear, th.nn.Conv2d)):
            continue
        module.register_forward_hook(lambda m, inputs, output, name=name: seen.update({name: output.dtype}))
    with policy.autocast():
        make_loss(policy)(batch)
    assert len(seen) > 20 and set(seen.values()) == {th.bfloat16}, seen


def test_float32_islands(bf16, monkeypatch):
    """Norms, recurrent state, logits and probabilities, outputs, targets, losses and returns."""
    policy, batch = bf16
    norms = []
    right = F.rms_norm
    monkeypatch.setattr(F, "rms_norm", lambda x, *args: norms.append(x.dtype) or right(x, *args))
    world_model, loss = policy.world_model, make_loss(policy)
    noise = loss.draw_noise(*batch.rewards.shape)
    with policy.autocast():
        output = loss(batch, noise)
        states, posterior = world_model.observe(batch, noise.posterior)
        prior = world_model.rssm.prior(states.deter)
        features = world_model.rssm.features(states)
        flat = (states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
        reconstruction = world_model.decoder(*flat)
        reward, cont = world_model.reward_head(features), world_model.continue_head(features)
        value, action = policy.critic(features), policy.actor(features)
        trajectory = imagine(world_model, policy.actor, type(states)(*flat), noise.imagination)
    islands = {
        "deter": states.deter,
        "stoch": states.stoch,
        "posterior logits": posterior.logits,
        "posterior probabilities": posterior.probs,
        "posterior entropy": posterior.entropy(),
        "prior logits": prior.logits,
        "kl": posterior.kl(prior),
        "reward logits": reward.logits,
        "reward mean": reward.mean(),
        "value logits": value.logits,
        "value bins": value.bins,
        "continue": cont.mean(),
        "imagined deter": trajectory.latents.deter,
        "imagined features": trajectory.features,
        "return normaliser": policy.return_normalizer.low,
        "loss": output.loss,
        **{f"loss term {name}": term for name, term in output.terms.items()},
        **{f"imagined {name}": part for name, part in output.imagined._asdict().items()},
        **{f"reconstruction of {key}": distribution.mode() for key, distribution in reconstruction.items()},
        **{f"metric {name}": metric for name, metric in output.metrics.items()},
    }
    if policy.actor.sizes is None:
        islands |= {"action mean": action.mean, "action std": action.std}
    else:
        islands |= {"action probabilities": action.probs, "action log probabilities": action.log_probs}
    wrong = {name: x.dtype for name, x in islands.items() if x.is_floating_point() and x.dtype != th.float32}
    assert not wrong and len(islands) > 40
    assert norms and set(norms) == {th.float32}


def test_acting_state_is_float32(bf16):
    policy, _ = bf16
    MIXED.seed(0)
    observation = {key: np.stack([MIXED[key].sample() for _ in range(3)]) for key in MIXED.spaces}
    for deterministic in (False, True):
        _, state = policy.predict(observation, episode_start=np.ones(3), deterministic=deterministic)
        assert all(part.dtype == np.float32 for part in state)
