"""Gradients of each loss term, ends of episodes, overfitting of one batch."""

import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.distributions import SymexpTwoHot, symexp_bins
from sb3_dreamer.common.optimizers import clip_grad_agc_
from sb3_dreamer.dreamerv3.losses import LOSS_SCALES, auto_ent_coef
from tests.support.helpers import ACTION_SPACES, IMAGE, MIXED, VECTOR, make_loss, make_policy, random_batch, randomize_outputs

MODULES = ("encoder", "rssm", "decoder", "reward_head", "continue_head")
# Modules trained by each term. All others get no gradient.
REACHES = {
    "reconstruction": {"encoder", "rssm", "decoder"},
    "reward": {"encoder", "rssm", "reward_head"},
    "continue": {"encoder", "rssm", "continue_head"},
    "dynamics": {"rssm", "encoder"},  # the encoder through the sequence: deter depends on earlier observations
    "representation": {"rssm", "encoder"},
    "actor": {"actor"},
    "critic": {"critic"},
    "replay_critic": {"encoder", "rssm", "critic"},
}


def modules_of(policy) -> dict[str, th.nn.Module]:
    parts = {name: getattr(policy.world_model, name) for name in MODULES}
    return parts | {"actor": policy.actor, "critic": policy.critic, "critic_target": policy.critic_target}


@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_every_parameter(space, action_space, precision):
    """Also under autocast: weights cast for imagination, without gradient, must be cast again for the losses."""
    policy = make_policy(space, action_space, precision=precision)
    randomize_outputs(policy)
    with policy.autocast():
        output = make_loss(policy, free_nats=0.0)(random_batch(policy))
    assert th.isfinite(output.loss)
    output.loss.backward()
    silent = [name for name, p in policy.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert not silent
    assert all(p.grad is None for p in policy.critic_target.parameters())


@pytest.mark.parametrize("term", LOSS_SCALES)
def test_each_term_trains_its_own_modules(term):
    policy = make_policy(MIXED, ACTION_SPACES["discrete"])
    randomize_outputs(policy)
    output = make_loss(policy, free_nats=0.0)(random_batch(policy))
    modules = modules_of(policy)
    output.terms[term].mean().backward()
    reached = {
        name for name, module in modules.items() if any(p.grad is not None and p.grad.any() for p in module.parameters())
    }
    assert reached == REACHES[term]


def test_initial_values():
    """Expected at initialisation: uniform two-hot heads, zero predictions."""
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    batch = random_batch(policy)
    output = make_loss(policy)(batch)
    ln255 = th.log(th.tensor(255.0))
    assert th.allclose(output.terms["reward"], ln255.expand(4, 8))
    assert not output.imagined.rewards.any() and not output.imagined.values.any() and not output.imagined.returns.any()
    weights = output.imagined.weights[:, :-1]
    assert th.allclose(output.terms["critic"], 2 * ln255 * weights)
    kept = 1.0 - batch.is_last[:, :-1].float()
    assert th.allclose(output.terms["replay_critic"], 2 * ln255 * kept)
    assert th.equal(output.terms["dynamics"], th.ones(4, 8))  # below the free nats
    assert 0.3 < output.terms["continue"].mean() < 1.2


def test_total_is_the_weighted_sum_of_means():
    policy = make_policy(VECTOR, ACTION_SPACES["box"])
    scales = dict(reward=2.5, actor=0.0)
    output = make_loss(policy, loss_scales=scales)(random_batch(policy))
    expected = sum({**LOSS_SCALES, **scales}[name] * term.mean() for name, term in output.terms.items())
    assert th.isclose(output.loss, expected)
    assert output.metrics["train/loss"] == output.loss


def test_imagine_last_uses_the_last_rows():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    batch = random_batch(policy)
    everything, last = make_loss(policy), make_loss(policy, imagine_last=3)
    noise = everything.draw_noise(4, 8)
    short = last.draw_noise(4, 8)
    assert short.imagination.stoch.shape == (12, 3, 2) and noise.imagination.stoch.shape == (32, 3, 2)
    short = short._replace(posterior=noise.posterior)
    full_output, last_output = everything(batch, noise), last(batch, short)
    starts = full_output.states.deter[:, -3:].flatten(0, 1)
    assert th.equal(last_output.trajectory.latents.deter[:, 0], starts)
    assert last_output.terms["replay_critic"].shape == (4, 2)
    assert th.equal(last_output.terms["reconstruction"], full_output.terms["reconstruction"])


def test_imagination_from_terminal_states_has_zero_weight():
    policy = make_policy(VECTOR, ACTION_SPACES["discrete"])
    with th.no_grad():
        policy.world_model.continue_head.output.weight.zero_()
        policy.world_model.continue_head.output.bias.fill_(-30.0)
    output = make_loss(policy)(random_batch(policy))
    assert output.imagined.weights.max() < 1e-12
    assert output.terms["actor"].abs().max() < 1e-10 and output.terms["critic"].max() < 1e-10


@pytest.mark.parametrize(
    ("progress_remaining", "returns_differ", "expected"),
    [(1.0, True, 0.05), (0.5, True, 0.0122474), (0.0, True, 0.003), (-0.1, True, 0.003), (0.5, False, 0.05)],
)
def test_auto_ent_coef(progress_remaining, returns_differ, expected):
    assert auto_ent_coef(progress_remaining, returns_differ) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_the_actor_is_trained_with_the_auto_ent_coef(action):
    policy = make_policy(VECTOR, ACTION_SPACES[action])
    batch, loss = random_batch(policy), make_loss(policy, ent_coef="auto")
    noise = loss.draw_noise(*batch.rewards.shape)
    loss.set_progress(0.5, returns_differ=True)
    output = loss(batch, noise)
    coefficient = output.metrics["actor_critic/ent_coef"]
    assert coefficient.item() == pytest.approx(0.0122474, rel=1e-5)
    fixed = make_loss(policy, ent_coef=coefficient.item())(batch, noise)
    th.testing.assert_close(output.terms["actor"], fixed.terms["actor"])
    assert "actor_critic/ent_coef" not in fixed.metrics
    loss.set_progress(0.0, returns_differ=True)
    assert coefficient.item() == pytest.approx(0.0122474, rel=1e-5)  # it waits for the logger


def two_hot_entropy(values: th.Tensor) -> th.Tensor:
    """Smallest possible cross-entropy with each value's two-hot target."""
    bins = symexp_bins(255)
    logits = th.zeros(*values.shape, 255, requires_grad=True)
    (grad,) = th.autograd.grad(SymexpTwoHot(logits, bins).loss(values).sum(), logits)
    target = (1.0 / 255.0 - grad).clamp_min(1e-12)
    return -(target * target.log()).sum(-1)


def draw_squares(images: th.Tensor) -> th.Tensor:
    """Images with a square at a random position on a plain background, instead of noise. (B, T, C, h, w)"""
    generator = th.Generator().manual_seed(0)
    images = images[..., :1, :1].expand_as(images).clone()
    for picture in images.flatten(0, 1):
        y, x = (int(th.randint(size - 6, (), generator=generator)) for size in picture.shape[1:])
        picture[:, y : y + 6, x : x + 6] = th.randint(256, (), generator=generator)
    return images


@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_overfits_one_batch(space):
    """lr 1e-3, no warm-up, 300 updates: the reducible losses fall to a tenth of their initial values."""
    policy = make_policy(
        space, spaces.Discrete(3), deter=64, hidden=32, stoch=8, classes=8, units=32, depth=8, blocks=4, bins=255
    )
    batch = random_batch(policy, batch_size=4, length=6)
    if space is IMAGE:
        batch = batch._replace(observations=draw_squares(batch.observations))
    if space is MIXED:
        for key in ("camera", "small.camera"):
            batch.observations[key] = draw_squares(batch.observations[key])
    loss_module = make_loss(policy, imagination_horizon=1, imagine_last=2)
    gamma = loss_module.gamma
    target = gamma * (1.0 - batch.is_terminal.float())
    continue_entropy = -(th.xlogy(target, target) + th.xlogy(1 - target, 1 - target)).mean()
    reward_entropy = two_hot_entropy(batch.rewards).mean()
    for group in policy.optimizer.param_groups:
        group["lr"] = 1e-3

    def excess(output) -> th.Tensor:
        means = {name: term.detach().mean() for name, term in output.terms.items()}
        return th.stack([means["reconstruction"], means["reward"] - reward_entropy, means["continue"] - continue_entropy])

    th.manual_seed(0)
    history = []
    for _ in range(300):
        output = loss_module(batch)
        policy.optimizer.zero_grad()
        output.loss.backward()
        clip_grad_agc_(policy.parameters(), 0.3)
        policy.optimizer.step()
        policy.update_target(0.02)
        history.append(excess(output))
    start, end = history[0], th.stack(history[-10:]).mean(0)
    assert (end <= 0.1 * start).all(), f"from {start.tolist()} to {end.tolist()}"
    assert (end >= -1e-3).all()  # the entropies are lower bounds
