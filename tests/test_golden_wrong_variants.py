"""Ten mistakes of other ports of DreamerV3. The golden checks must detect each of them."""

import math

import pytest
import torch as th

from sb3_dreamer.common import torch_layers
from sb3_dreamer.common.distributions import OneHotCategoricalST, at_least_float32
from sb3_dreamer.common.optimizers import LaProp
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamerv3.losses import DreamerLoss
from sb3_dreamer.dreamerv3.rssm import RSSM, BlockGRU
from tests.golden import checks as golden_checks
from tests.golden.files import FILES, load


def raw_logits_in_kl(patch):
    right = RSSM.kl_loss

    def kl_loss(posterior, prior, free_nats):
        return right(OneHotCategoricalST(posterior.logits), OneHotCategoricalST(prior.logits), free_nats)

    patch.setattr(RSSM, "kl_loss", staticmethod(kl_loss))


def gumbel_straight_through(patch):
    def straight_through(self, indices):
        one_hot = th.nn.functional.one_hot(indices.long(), self.logits.shape[-1]).float()
        noise = -th.log(-th.log(th.full_like(self.logits, 0.3)))
        soft = th.softmax(self.log_probs + noise * (1.0 + one_hot), dim=-1)
        return one_hot + (soft - soft.detach())

    patch.setattr(OneHotCategoricalST, "straight_through", straight_through)


def flat_gate_split(patch):
    def forward(self, deter, stoch, action):
        action = action / action.detach().abs().clamp_min(1.0)
        inputs = th.cat([self.from_deter(deter), self.from_stoch(stoch.flatten(-2)), self.from_action(action)], dim=-1)
        blocks = [deter.unflatten(-1, (self.blocks, -1)), inputs.unsqueeze(1).expand(-1, self.blocks, -1)]
        x = self.hidden(th.cat(blocks, dim=-1).flatten(1))
        reset, candidate, update = at_least_float32(self.gates(x)).chunk(3, dim=-1)
        update = th.sigmoid(update - 1.0)
        return update * th.tanh(th.sigmoid(reset) * candidate) + (1.0 - update) * deter

    patch.setattr(BlockGRU, "forward", forward)


def free_nats_per_group(patch):
    def kl_loss(posterior, prior, free_nats):
        def cut(dist):
            return OneHotCategoricalST(dist.logits.detach(), dist.unimix)

        share = free_nats / posterior.logits.shape[-2]
        dynamics = cut(posterior).kl(prior).clamp_min(share).sum(-1)
        return dynamics, posterior.kl(cut(prior)).clamp_min(share).sum(-1)

    patch.setattr(RSSM, "kl_loss", staticmethod(kl_loss))


def adam_order(patch):
    patch.setattr(golden_checks, "LaProp", lambda params, lr: th.optim.Adam(params, lr=lr, eps=1e-20))


def learning_rate_inside_momentum(patch):
    def step_group(self, group):
        group["step"] += 1
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(p), th.zeros_like(p)
            state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (state["exp_avg_sq"] / (1 - beta2 ** group["step"])).sqrt() + group["eps"]
            state["exp_avg"].mul_(beta1).add_(p.grad / root, alpha=(1 - beta1) * group["lr"])
            p.sub_(state["exp_avg"] / (1 - beta1 ** group["step"]))

    patch.setattr(LaProp, "_step_group", step_group)


def no_root_continue(patch):
    right = DreamerLoss.imagined_returns

    def imagined_returns(self, trajectory, value):
        imagined = right(self, trajectory, value)
        return imagined._replace(weights=imagined.weights / imagined.continues[:, :1])

    patch.setattr(DreamerLoss, "imagined_returns", imagined_returns)


def stopped_replay_value_gradient(patch):
    right = DreamerLoss.replay_critic_term

    def replay_critic_term(self, batch, states, bootstrap):
        return right(self, batch, LatentState(*(part.detach() for part in states)), bootstrap)

    patch.setattr(DreamerLoss, "replay_critic_term", replay_critic_term)


def stoch_first_features(patch):
    patch.setattr(RSSM, "features", staticmethod(lambda state: th.cat([state.stoch.flatten(-2), state.deter], dim=-1)))


VARIANTS = {
    raw_logits_in_kl: "rssm",
    gumbel_straight_through: "categorical",
    flat_gate_split: "rssm",
    free_nats_per_group: "rssm",
    adam_order: "optimizer",
    learning_rate_inside_momentum: "optimizer",
    no_root_continue: "full_loss",
    stopped_replay_value_gradient: "full_loss",
    stoch_first_features: "full_loss",
}


@pytest.mark.parametrize(("variant", "family"), VARIANTS.items(), ids=[variant.__name__ for variant in VARIANTS])
def test_wrong_variant_fails(variant, family, monkeypatch):
    files = [path for path in FILES if path.stem.startswith(family)]
    assert files, f"no golden file of the family {family}"
    for path in files:
        golden_checks.run_check(path.stem, load(path))
    variant(monkeypatch)
    failures = []
    for path in files:
        try:
            golden_checks.run_check(path.stem, load(path))
        except AssertionError as error:
            failures.append(str(error))
    assert failures, f"{variant.__name__} goes unnoticed by {[path.stem for path in files]}"
    assert all("off by" in failure for failure in failures)  # a number differs, not a shape


def check_initial_scale() -> None:
    """Initial weights have standard deviation 1/sqrt(fan-in). The fan-in of block layers is that of all blocks."""
    th.manual_seed(0)
    for layer, fan_in in ((torch_layers.Linear(512, 512), 512), (torch_layers.BlockLinear(512, 2048, 8), 512)):
        assert abs(layer.weight.std().item() * math.sqrt(fan_in) - 1.0) < 0.02, f"{layer} starts at the wrong scale"
    conv = torch_layers.Conv2dSame(32, 64)
    assert abs(conv.weight.std().item() * math.sqrt(25 * 32) - 1.0) < 0.02


def test_per_block_initialisation_fails(monkeypatch):
    """Tenth mistake. Golden files contain random weights, not initial ones, so the initialisation is checked directly."""
    check_initial_scale()
    right = torch_layers.init_weights

    def per_block(weight, fan_in, outscale=1.0):
        right(weight, weight.shape[1] if weight.dim() == 3 else fan_in, outscale)

    monkeypatch.setattr(torch_layers, "init_weights", per_block)
    with pytest.raises(AssertionError, match="wrong scale"):
        check_initial_scale()
