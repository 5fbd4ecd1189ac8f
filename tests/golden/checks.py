"""
One check per family of golden files. A check reads inputs, computes with our code and compares every other array.

All dimensions are read from the arrays.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_dreamer.common.distributions import (
    BoundedNormal,
    Categorical,
    OneHotCategoricalST,
    SymexpTwoHot,
    symexp,
    symexp_bins,
    symlog,
)
from sb3_dreamer.common.optimizers import LaProp, clip_grad_agc_
from sb3_dreamer.common.returns import ReturnNormalizer, lambda_return
from sb3_dreamer.common.schedules import warmup_factor
from sb3_dreamer.common.torch_layers import MLP, BlockLinear, Linear, RMSNorm
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.losses import actor_loss, critic_loss
from sb3_dreamer.dreamerv3.networks import MultiDecoder, MultiEncoder
from sb3_dreamer.dreamerv3.rssm import RSSM
from tests.golden import model as gm
from tests.golden.full_loss import GAMMA, LAMBDA, SUM_RTOL, check_full_loss
from tests.golden.record import Golden


def check_symlog(g: Golden) -> None:
    x, y = g.tensor("x"), g.tensor("y")

    def relative(name: str, ours: th.Tensor, rtol: float) -> None:
        g.expect_where(name, ours, rtol * np.maximum(np.abs(g.arrays[name]), 1e-12))

    relative("symlog_x", symlog(x), 1e-6)
    relative("symexp_y", symexp(y), 2e-6)
    relative("roundtrip", symexp(symlog(x)), 1e-4)


def check_twohot(g: Golden) -> None:
    logits, targets = g.tensor("logits").requires_grad_(), g.tensor("targets")
    bins = symexp_bins(logits.shape[-1])
    g.expect("bins", bins, rtol=1e-6)
    assert th.equal(bins, -bins.flip(0)), f"{g.name}: bins are not antisymmetric"
    dist = SymexpTwoHot(logits, bins)
    loss = dist.loss(targets)
    g.expect("loss", loss)
    g.expect("grad_logits", th.autograd.grad(loss.sum(), logits)[0])
    zero_logits = th.zeros_like(logits).requires_grad_()
    (grad,) = th.autograd.grad(SymexpTwoHot(zero_logits, bins).loss(targets).sum(), zero_logits)
    g.expect("target_weights", 1.0 / logits.shape[-1] - grad, rtol=0.0, atol=1e-5)
    probs = th.softmax(logits.detach(), -1)
    spread = (probs * bins.abs()).sum(-1).numpy()
    pred = dist.mean()
    is_constant = (logits == logits[:, :1]).all(-1)
    assert is_constant.any() and bool((pred[is_constant] == 0.0).all()), f"{g.name}: uniform logits must give exactly 0"
    limit = np.maximum(1e-4 * np.maximum(1.0, np.abs(g.arrays["pred"])), 1e-5 * spread)
    g.expect_where("pred", pred, np.where(is_constant.numpy(), 0.0, limit))
    # For comparison: the naive sum, whose rounding error depends on the order of summation.
    g.expect_where("naive_pred", (probs * bins).sum(-1), 1e-4 + 1e-5 * spread)


def check_categorical(g: Golden) -> None:
    unimix = float(g.input("unimix"))
    logits_p, logits_q = g.tensor("logits_p").requires_grad_(), g.tensor("logits_q").requires_grad_()
    event = g.tensor("event").long()
    p, q = OneHotCategoricalST(logits_p, unimix), OneHotCategoricalST(logits_q, unimix)
    g.expect("mixed_logits_p", p.log_probs)
    g.expect("entropy_p_per_group", p.entropy())
    g.expect("entropy_p", p.entropy().sum(-1))
    g.expect("kl_pq_per_group", p.kl(q))
    g.expect("kl_pq", p.kl(q).sum(-1))
    g.expect("logp_event_per_group", p.log_prob(event))
    g.expect("mode", th.nn.functional.one_hot(p.mode(), logits_p.shape[-1]))
    sample = p.straight_through(event)
    assert th.equal(sample.detach().argmax(-1), event)
    (grad,) = th.autograd.grad((sample * g.tensor("st_cotangent")).sum(), logits_p, retain_graph=True)
    g.expect("st_grad_logits_p", grad)
    dyn, rep = RSSM.kl_loss(p, q, 1.0)
    g.expect("dyn_loss", dyn)
    g.expect("rep_loss", rep)
    grad_post, grad_prior = th.autograd.grad((dyn + 0.1 * rep).sum(), [logits_p, logits_q])
    g.expect("dynrep_grad_post", grad_post)
    g.expect("dynrep_grad_prior", grad_prior)
    plain_p, plain_q = Categorical(logits_p), Categorical(logits_q)
    g.expect("nomix_entropy_p", plain_p.entropy())
    g.expect("nomix_kl_pq", plain_p.kl(plain_q))
    g.expect("nomix_logp_event", plain_p.log_prob(event))


def check_layers(g: Golden) -> None:
    weights = g.with_prefix("w:")
    n_in, n_out = weights["linear.kernel"].shape
    linear, block = Linear(n_in, n_out), BlockLinear(n_in, n_out, int(g.input("blocks")))
    norm, mlp = RMSNorm(n_in), MLP(n_in, n_out, gm.count_layers(weights, "mlp.linear{}.kernel"))
    gm.load_weights(gm.layer("linear", linear), weights)
    gm.load_weights(gm.layer("block", block), weights)
    gm.load_weights(gm.scale("rms", norm), weights)
    gm.load_weights(((name.lstrip("."), p) for name, p in gm.head_mlp("", mlp)), weights)
    x, x_small = g.tensor("x"), g.tensor("x_small")
    g.expect("y_linear", linear(x))
    g.expect("y_block", block(x))
    g.expect("y_rmsnorm", norm(x))
    g.expect("y_rmsnorm_small", norm(x_small))
    g.expect("y_mlp2", mlp(x))
    g.expect("y_mlp2_small", mlp(x_small))


def check_rssm(g: Golden) -> None:
    weights = g.with_prefix("w:")
    stoch_shape = g.arrays["sample_stoch"].shape[2:]
    size = gm.size_from_weights(weights, stoch=stoch_shape[0], classes=stoch_shape[1])
    tokens, raw_action, reset = g.tensor("tokens"), g.tensor("action"), g.tensor("reset")
    action_dim = weights["dyn.dynin2.kernel"].shape[0]
    is_discrete = not raw_action.is_floating_point()

    def embed(action: th.Tensor) -> th.Tensor:
        return th.nn.functional.one_hot(action.long(), action_dim).float() if is_discrete else action

    def forced(name: str) -> th.Tensor:
        return g.tensor(name).argmax(-1)

    rssm = RSSM(tokens.shape[-1], action_dim, size)
    gm.load_weights(gm.rssm_names(rssm), weights)
    carry = LatentState(g.tensor("carry_deter"), g.tensor("carry_stoch"))
    actions = embed(raw_action)
    g.expect("action_embed_step0", actions[:, 0])
    g.expect("core_deter_step0_noreset", rssm.core(*carry, actions[:, 0]))

    states, posterior = rssm.observe(tokens, actions, reset, carry, forced("sample_stoch"))
    prior = rssm.prior(states.deter)
    g.expect("deter", states.deter)
    g.expect("post_logits", posterior.logits)
    g.expect("sample_stoch", states.stoch)
    g.expect("prior_logits", prior.logits)
    dyn, rep = rssm.kl_loss(posterior, prior, 1.0)
    g.expect("kl_raw", posterior.kl(prior).sum(-1))
    g.expect("dyn_loss", dyn)
    g.expect("rep_loss", rep)
    g.expect("dyn_entropy_mean", prior.entropy().sum(-1).mean())
    g.expect("rep_entropy_mean", posterior.entropy().sum(-1).mean())
    g.expect("final_carry_deter", states.deter[:, -1])
    g.expect("final_carry_stoch", states.stoch[:, -1])

    state, step_posterior = rssm.obs_step(carry, actions[:, 0], tokens[:, 0], reset[:, 0], forced("step_stoch_sample"))
    g.expect("step_deter", state.deter)
    g.expect("step_stoch_sample", state.stoch)
    g.expect("step_post_logits", step_posterior.logits)

    state = rssm.img_step(carry, embed(g.tensor("imag1_action")), forced("imag1_stoch_sample"))
    g.expect("imag1_action", raw_action[:, 1])
    g.expect("imag1_deter", state.deter)
    g.expect("imag1_prior_logits", rssm.prior(state.deter).logits)
    g.expect("imag1_stoch_sample", state.stoch)
    imagined, state = [], carry
    imagined_actions, imagined_stoch = embed(g.tensor("imag5_actions")), forced("imag5_stoch_sample")
    for k in range(imagined_stoch.shape[1]):
        state = rssm.img_step(state, imagined_actions[:, k], imagined_stoch[:, k])
        imagined.append(state)
    deter = th.stack([s.deter for s in imagined], 1)
    g.expect("imag5_deter", deter)
    g.expect("imag5_prior_logits", rssm.prior(deter).logits)
    g.expect("imag5_stoch_sample", th.stack([s.stoch for s in imagined], 1))

    ramp = th.arange(stoch_shape[1], dtype=th.float32)
    total = dyn.mean() + 0.1 * rep.mean() + 0.01 * states.deter.square().mean() + 0.01 * (states.stoch * ramp).mean()
    g.expect("grad_test_total", total, rtol=SUM_RTOL)
    total.backward()
    for name, parameter in gm.rssm_names(rssm):
        assert parameter.grad is not None
        g.expect(f"gradnorm:{name}", parameter.grad.norm(), rtol=SUM_RTOL, atol=1e-8)


def check_encdec(g: Golden) -> None:
    weights, observations = g.with_prefix("w:"), g.with_prefix("obs:")
    space = gm.observation_space(observations, weights)
    deter, stoch = g.tensor("deter"), g.tensor("stoch")
    size = gm.size_from_weights(weights, deter=deter.shape[-1], stoch=stoch.shape[-2], classes=stoch.shape[-1])
    encoder, decoder = MultiEncoder(space, size), MultiDecoder(space, size)
    gm.load_weights(gm.encoder_names(encoder), weights)
    gm.load_weights(gm.decoder_names(decoder), weights)
    lead = deter.shape[:2]
    flat = {key: gm.to_tensor(array).flatten(0, 1) for key, array in observations.items()}
    g.expect("tokens", encoder(flat).unflatten(0, lead))
    distributions = decoder(deter.flatten(0, 1), stoch.flatten(0, 1))
    targets = decoder.targets(flat)
    for key, dist in distributions.items():
        is_image = f"{key}_mean" in g
        g.expect(f"{key}_loss", dist.loss(targets[key]).unflatten(0, lead), rtol=SUM_RTOL if is_image else 1e-4)
        if is_image:
            g.expect(f"{key}_mean", dist.mode().permute(0, 2, 3, 1).unflatten(0, lead))
        elif f"{key}_logits" in g:
            g.expect(f"{key}_logits", dist.logits.reshape(g.arrays[f"{key}_logits"].shape))
        else:
            g.expect(f"{key}_pred_symlog", dist.prediction.reshape(g.arrays[f"{key}_pred_symlog"].shape))


def check_lambda_return(g: Golden) -> None:
    reward, boot, value, con = (g.tensor(name) for name in ("reward", "boot", "value", "con"))
    disc, lam = float(g.input("disc_replay")), float(g.input("lam"))
    discounts = disc * (1.0 - g.tensor("is_terminal").float())
    g.expect("ret_replay", lambda_return(reward, discounts, boot, return_lambda=lam, is_last=g.tensor("is_last")))
    g.expect("ret_imag", lambda_return(reward, con, value, return_lambda=lam))


def check_retnorm(g: Golden) -> None:
    normalizer = ReturnNormalizer()
    names = ("perc5", "perc95", "ema_lo", "ema_hi", "offset", "scale")
    rows: dict[str, list[float]] = {name: [] for name in names}
    for returns in g.tensor("returns"):
        normalizer.update(returns)
        low, high = th.quantile(returns.flatten(), th.tensor([0.05, 0.95]))
        values = (low, high, normalizer.low, normalizer.high, normalizer.low, normalizer.scale)
        for name, value in zip(names, values, strict=True):
            rows[name].append(float(value))
    for name in names:
        g.expect(name, np.array(rows[name]))


def check_bounded_normal(g: Golden) -> None:
    weights, hidden = g.with_prefix("w:"), g.tensor("hidden")
    n_in, n_out = weights["head.mean.kernel"].shape
    mean_layer, std_layer = Linear(n_in, n_out), Linear(n_in, n_out)
    gm.load_weights(gm.layer("head.mean", mean_layer), weights)
    gm.load_weights(gm.layer("head.stddev", std_layer), weights)
    raw_mean, raw_std = mean_layer(hidden), std_layer(hidden)
    dist = BoundedNormal(raw_mean, raw_std)
    g.expect("raw_mean", raw_mean)
    g.expect("raw_std", raw_std)
    g.expect("mean", dist.mean)
    g.expect("std", dist.std)
    g.expect("mode", dist.mode())
    sampled, action = dist.sample(g.tensor("noise")), g.tensor("action")
    # Row 0 was set out of bounds by hand.
    g.expect("action", th.cat([action[:1], sampled[1:]]))
    g.expect("logp", dist.log_prob(action).sum(-1))
    g.expect("entropy", dist.entropy().sum(-1))
    for name, raw in (("entropy_min_per_dim", -1e3), ("entropy_max_per_dim", 1e3)):
        g.expect(name, BoundedNormal(th.zeros(n_out), th.full((n_out,), raw)).entropy())


def check_optimizer(g: Golden) -> None:
    lr, warmup = float(g.input("lr")), int(g.input("warmup"))
    names = [name.removeprefix("p0:") for name in g.names("p0:")]
    params = {name: th.nn.Parameter(g.tensor(f"p0:{name}").clone()) for name in names}
    # Parameters are set to zero before each step, so that they equal the update afterwards. Added to a parameter, an update
    # of 4e-8 would be lost in rounding. LaProp does not depend on the values of the parameters.
    updates = {name: th.nn.Parameter(th.zeros_like(p)) for name, p in params.items()}
    optimizer = LaProp(updates.values(), lr=lr)
    rates = g.input("lr_per_step")
    for t, rate in enumerate(rates, start=1):
        optimizer.param_groups[0]["lr"] = float(rate)
        for name, p in params.items():
            p.grad = g.tensor(f"g{t}:{name}").clone()
        clip_grad_agc_(params.values(), 0.3)
        for name, p in params.items():
            g.expect(f"cg{t}:{name}", p.grad, rtol=1e-5, atol=1e-12)
            updates[name].data.zero_()
            updates[name].grad = p.grad.clone()
        optimizer.step()
        for name, p in params.items():
            g.expect(f"u{t}:{name}", updates[name], rtol=1e-5, atol=1e-14)
            p.data.add_(updates[name].detach())
            g.expect(f"p{t}:{name}", p, rtol=3e-7, atol=1e-4 * float(np.abs(g.arrays[f"u{t}:{name}"]).max()))
    # The file's rates are differences of float32 schedules: exact to 2e-5.
    g.expect("lr_per_step", np.array([lr * warmup_factor(n, warmup) for n in range(len(rates))]), rtol=3e-5, atol=0.0)
    if "lr_schedule" in g:
        at = g.input("lr_schedule_at")
        g.expect("lr_schedule", np.array([lr * warmup_factor(int(n), warmup) for n in at]), rtol=3e-5, atol=0.0)


def check_actor_critic_loss(g: Golden) -> None:
    value_logits = g.tensor("value_logits").requires_grad_()
    replay_logits = g.tensor("replay_value_logits").requires_grad_()
    bins = symexp_bins(value_logits.shape[-1])
    g.expect("bins", bins, rtol=1e-6)
    value = SymexpTwoHot(value_logits, bins)
    kept = SymexpTwoHot(value_logits[:, :-1], bins)
    slow = SymexpTwoHot(g.tensor("slow_value_logits"), bins).mean()
    reward, con, action = g.tensor("reward"), g.tensor("con"), g.tensor("action")
    g.expect("value_pred", value.mean())
    returns = lambda_return(reward, con, value.mean().detach(), return_lambda=LAMBDA)
    g.expect("ret", returns)
    weight = con.cumprod(1)
    g.expect("weight", weight)

    normalizer = ReturnNormalizer()
    normalizer.low.copy_(g.tensor("retnorm_lo_before"))
    normalizer.high.copy_(g.tensor("retnorm_hi_before"))
    normalizer.update(returns)
    g.expect("retnorm_lo_after", normalizer.low)
    g.expect("retnorm_hi_after", normalizer.high)
    raw_names = ["policy_logits"] if "policy_logits" in g else ["policy_raw_mean", "policy_raw_std"]
    raw = [g.tensor(name).requires_grad_() for name in raw_names]
    if len(raw) == 1:
        dist = Categorical(raw[0])
        log_prob, entropy = dist.log_prob(action), dist.entropy()
    else:
        normal = BoundedNormal(*raw)
        log_prob, entropy = normal.log_prob(action).sum(-1), normal.entropy().sum(-1)
    advantage = (returns - value.mean()[:, :-1]) / normalizer.scale
    policy_loss = actor_loss(log_prob[:, :-1], entropy[:, :-1], advantage, weight[:, :-1], ent_coef=3e-4)
    value_loss = weight[:, :-1] * critic_loss(kept, returns, slow[:, :-1])
    g.expect("policy_loss", policy_loss)
    g.expect("value_loss", value_loss)

    is_last, is_terminal = g.tensor("replay_is_last").float(), g.tensor("replay_is_terminal").float()
    boot = returns[:, 0].unflatten(0, is_last.shape)
    g.expect("replay_boot", boot)
    discounts = GAMMA * (1.0 - is_terminal)
    replay_ret = lambda_return(g.tensor("replay_reward"), discounts, boot, return_lambda=LAMBDA, is_last=is_last)
    g.expect("replay_ret", replay_ret)
    replay_slow = SymexpTwoHot(g.tensor("replay_slow_value_logits"), bins).mean()
    repval = (1.0 - is_last[:, :-1]) * critic_loss(SymexpTwoHot(replay_logits[:, :-1], bins), replay_ret, replay_slow[:, :-1])
    g.expect("repval_loss", repval)
    total = policy_loss.mean() + value_loss.mean() + 0.3 * repval.mean()
    g.expect("total", total, rtol=SUM_RTOL)
    grads = th.autograd.grad(total, [value_logits, replay_logits, *raw])
    g.expect("grad_value_logits", grads[0], atol=1e-8)
    g.expect("grad_replay_value_logits", grads[1], atol=1e-8)
    for name, grad in zip(raw_names, grads[2:], strict=True):
        g.expect(f"grad_{name}", grad, atol=1e-8)


CHECKS: dict[str, Callable[[Golden], None]] = {
    "symlog": check_symlog,
    "twohot": check_twohot,
    "categorical": check_categorical,
    "layers": check_layers,
    "rssm": check_rssm,
    "encdec": check_encdec,
    "lambda_return": check_lambda_return,
    "retnorm": check_retnorm,
    "bounded_normal": check_bounded_normal,
    "optimizer": check_optimizer,
    "actor_critic_loss": check_actor_critic_loss,
    "full_loss": check_full_loss,
}


def run_check(name: str, arrays: dict[str, np.ndarray], **options: Any) -> Golden:
    """
    :param options: options of the check
    :raises AssertionError: if our numbers differ, an array is not used, or there is no check for the file
    """
    family = [prefix for prefix in CHECKS if name.startswith(prefix)]
    assert family, f"no check for golden file {name}"
    golden = Golden(name, arrays)
    CHECKS[max(family, key=len)](golden, **options)
    golden.finish()
    return golden
