"""The golden check of the whole agent loss: values, terms, and the gradient of every parameter."""

from unittest.mock import patch

import numpy as np
import torch as th

from sb3_dreamer.common.distributions import BoundedNormal
from sb3_dreamer.common.preprocessing import encode_actions
from sb3_dreamer.common.returns import lambda_return
from sb3_dreamer.common.type_aliases import ImaginationNoise, LatentState, SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.fast.make_update import make_loss
from sb3_dreamer.dreamerv3.losses import DreamerLoss, LossOutput
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from tests.golden import model as gm
from tests.golden.record import Golden

GAMMA, LAMBDA = 1.0 - 1.0 / 333.0, 0.95
SUM_RTOL = 1e-3  # sums over pixels, total losses, gradient norms

TERMS = {
    "rew": "reward",
    "con": "continue",
    "dyn": "dynamics",
    "rep": "representation",
    "policy": "actor",
    "value": "critic",
    "repval": "replay_critic",
}
NO_OBSERVATION = ("action", "reward", "is_first", "is_last", "is_terminal", "dyn.deter", "dyn.stoch")


def check_full_loss(g: Golden, fused: bool | str = "auto") -> None:
    weights, data = g.with_prefix("w:"), g.with_prefix("data:")
    observations = {key: array for key, array in data.items() if key not in NO_OBSERVATION}
    stoch_shape = g.arrays["post_stoch_sample"].shape[2:]
    size = gm.size_from_weights(weights, stoch=stoch_shape[0], classes=stoch_shape[1])
    dimensions = {field: getattr(size, field) for field in size.__dataclass_fields__}
    policy = DreamerPolicy(
        gm.observation_space(observations, weights),
        gm.action_space(data["action"], weights),
        lambda _: 0.0,
        model_size="debug",
        **dimensions,
    )
    gm.load_weights(gm.policy_names(policy), weights)
    gm.load_weights(gm.target_names(policy), weights)
    policy.return_normalizer.low.copy_(g.tensor("retnorm_lo_before"))
    policy.return_normalizer.high.copy_(g.tensor("retnorm_hi_before"))
    batch = full_loss_batch(g, data, observations)
    with patch.object(BoundedNormal, "sample", lambda self, noise: noise):  # take actions as they are
        output, loss_module = full_loss_forward(g, policy, batch, fused)
    check_full_loss_values(g, policy, batch, output, loss_module)
    check_full_loss_gradients(g, policy, batch, output)


def full_loss_batch(g: Golden, data: dict[str, np.ndarray], observations: dict[str, np.ndarray]) -> SequenceBatch:
    """
    Official records contain the action chosen *after* the observation, and one context record in front. Our rows contain the
    action that led to the observation, and the context only gives the initial latent.
    """
    g.expect("prevact:action", data["action"][:, :-1])
    g.expect("init_deter", data["dyn.deter"][:, 0])
    g.expect("init_stoch", data["dyn.stoch"][:, 0])
    rows = {key: th.as_tensor(data[key][:, 1:]) for key in ("reward", "is_first", "is_last", "is_terminal")}
    prev_actions = th.as_tensor(data["action"][:, :-1])
    return SequenceBatch(
        observations={key: gm.to_tensor(array)[:, 1:] for key, array in observations.items()},
        prev_actions=prev_actions.unsqueeze(-1) if prev_actions.dim() == 2 else prev_actions,
        rewards=rows["reward"],
        is_first=rows["is_first"],
        # Mark the ends of abandoned episodes, as the replay buffer does when it writes a first row.
        is_last=rows["is_last"] | th.cat([rows["is_first"][:, 1:], th.zeros_like(rows["is_first"][:, :1])], dim=1),
        is_terminal=rows["is_terminal"],
        initial=LatentState(th.as_tensor(data["dyn.deter"][:, 0]), th.as_tensor(data["dyn.stoch"][:, 0])),
        indices=None,  # type: ignore[arg-type]
    )


def full_loss_forward(
    g: Golden, policy: DreamerPolicy, batch: SequenceBatch, fused: bool | str
) -> tuple[LossOutput, DreamerLoss]:
    imagined = g.tensor("imag_stoch").argmax(-1)  # (N, H, S)
    loss_module = make_loss(
        policy,
        fused,
        imagination_horizon=imagined.shape[1],
        gamma=GAMMA,
        return_lambda=LAMBDA,
        ent_coef=3e-4,
        free_nats=1.0,
    )
    actions = g.tensor("imag_action:action")
    noise = UpdateNoise(
        posterior=g.tensor("post_stoch_sample").argmax(-1),
        imagination=ImaginationNoise(imagined, actions.unsqueeze(-1) if actions.dim() == 2 else actions),
    )
    return loss_module(batch, noise), loss_module


def check_full_loss_values(
    g: Golden, policy: DreamerPolicy, batch: SequenceBatch, output: LossOutput, loss_module: DreamerLoss
) -> None:
    world_model, lead = policy.world_model, batch.rewards.shape
    g.expect("tokens", world_model.encode(batch.observations))
    encoded = encode_actions(batch.prev_actions, policy.action_space)
    forced = g.tensor("post_stoch_sample").argmax(-1)
    states, posterior = world_model.rssm.observe(
        world_model.encode(batch.observations), encoded, batch.is_first, batch.initial, forced
    )
    th.testing.assert_close(states.deter, output.states.deter)
    g.expect("post_deter", output.states.deter)
    g.expect("post_logits", posterior.logits)
    g.expect("post_stoch_sample", output.states.stoch)

    latents, features = output.trajectory.latents, output.trajectory.features
    g.expect("imag_deter", latents.deter[:, 1:])
    g.expect("imag_stoch", latents.stoch[:, 1:])
    g.expect("imag_prior_logits", world_model.rssm.prior(latents.deter[:, 1:]).logits)
    g.expect("imag_action:action", output.trajectory.actions.reshape(g.arrays["imag_action:action"].shape))
    g.expect("imag_reward", output.imagined.rewards)
    g.expect("imag_con", output.imagined.continues)
    g.expect("imag_value_logits", policy.critic(features).logits)
    g.expect("imag_slow_value_logits", policy.critic_target(features).logits)
    g.expect("imag_ret", output.imagined.returns)
    g.expect("retnorm_lo_after", policy.return_normalizer.low)
    g.expect("retnorm_hi_after", policy.return_normalizer.high)

    boot = output.imagined.returns[:, 0].unflatten(0, lead)
    g.expect("repl_boot", boot)
    g.expect("repl_value_logits", policy.critic(world_model.rssm.features(output.states)).logits)
    g.expect(
        "repl_ret",
        lambda_return(
            batch.rewards,
            GAMMA * (1.0 - batch.is_terminal.float()),
            boot,
            return_lambda=LAMBDA,
            is_last=batch.is_last,
        ),
    )
    for official, ours in TERMS.items():
        term = output.terms[ours]
        g.expect(f"loss:{official}", term.mean(1).unflatten(0, lead) if ours in ("actor", "critic") else term)
        g.expect(f"scale:{official}", loss_module.loss_scales[ours], rtol=1e-6)
    for key, term in world_model.reconstruction_losses(output.states, batch.observations).items():
        rtol = SUM_RTOL if key in [k for tower in world_model.encoder.towers for k in tower.tower.keys] else 1e-4
        g.expect(f"loss:{key}", term, rtol=rtol)
        g.expect(f"scale:{key}", loss_module.loss_scales["reconstruction"], rtol=1e-6)
    g.expect("total_loss", output.loss, rtol=SUM_RTOL)


def check_full_loss_gradients(g: Golden, policy: DreamerPolicy, batch: SequenceBatch, output: LossOutput) -> None:
    names = dict(gm.policy_names(policy))
    trainable = {id(p) for p in policy.trainable_parameters()}
    assert trainable == {id(p) for p in names.values()}, f"{g.name}: not every trained parameter has an official name"

    def module_norms(loss: th.Tensor) -> tuple[dict[str, float], dict[str, th.Tensor]]:
        grads = th.autograd.grad(loss, list(names.values()), retain_graph=True, allow_unused=True)
        by_name = {n: th.zeros_like(p) if v is None else v for (n, p), v in zip(names.items(), grads, strict=True)}
        squares: dict[str, float] = {}
        for name, grad in by_name.items():
            module = name.split(".")[0]
            squares[module] = squares.get(module, 0.0) + float(grad.double().square().sum())
        return {module: square**0.5 for module, square in squares.items()}, by_name

    norms, grads = module_norms(output.loss)
    for name, grad in grads.items():
        # XLA and torch round differently, in a few entries. The tolerance is therefore relative to the largest entry.
        g.expect(f"grad:{name}", gm.to_official(name, grad), rtol=2e-3, atol=2e-7)
    for module, norm in norms.items():
        g.expect(f"gradnorm:{module}", norm, rtol=SUM_RTOL)
    g.expect("gradnorm_all", float(np.sqrt(sum(norm**2 for norm in norms.values()))), rtol=SUM_RTOL)
    terms = {official: output.terms[ours] for official, ours in TERMS.items()}
    terms |= policy.world_model.reconstruction_losses(output.states, batch.observations)
    for official, term in terms.items():
        for module, norm in module_norms(term.mean())[0].items():
            g.expect(f"termgrad:{official}:{module}", norm, rtol=SUM_RTOL, atol=1e-7)
