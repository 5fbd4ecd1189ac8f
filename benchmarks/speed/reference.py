"""
A second, straightforward implementation of the objective. The tests compare the fast path with it.

It runs step by step, uses autograd throughout, dense two-hot targets and ``torch.distributions``. It reads the parameters of a
policy and shares no arithmetic with the package. ``python -m benchmarks.speed.update_time`` compares its speed.
"""

from typing import Any

import torch as th
from torch import distributions, nn
from torch.nn import functional as F

from sb3_dreamer.common.preprocessing import as_space_dict, as_tensor_dict, class_counts, class_indices, class_starts
from sb3_dreamer.common.torch_layers import BlockLinear, UpsampledConv2d
from sb3_dreamer.common.type_aliases import SequenceBatch, UpdateNoise
from sb3_dreamer.dreamerv3.losses import LOSS_SCALES
from sb3_dreamer.dreamerv3.networks import ConvDecoder, ConvEncoder
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

EPS = 1e-4


def symlog(x):
    return th.sign(x) * th.log(1 + x.abs())


def rms_norm(x, scale):
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale


def over_channels(x, scale):
    return rms_norm(x.permute(0, 2, 3, 1), scale).permute(0, 3, 1, 2)


def silu(x):
    return x * th.sigmoid(x)


def mlp(layers: nn.Module, x: th.Tensor) -> th.Tensor:
    """Layers of linear, RMSNorm and SiLU."""
    for layer in layers:  # type: ignore[attr-defined]
        x = silu(rms_norm(x @ layer[0].weight.t() + layer[0].bias, layer[1].weight))
    return x


def dense(layer: nn.Linear, x: th.Tensor) -> th.Tensor:
    return x @ layer.weight.t() + layer.bias


def block_dense(layer: BlockLinear, x: th.Tensor) -> th.Tensor:
    """Block-diagonal linear layer, block by block."""
    parts = x.chunk(layer.blocks, dim=-1)
    return th.cat([part @ weight for part, weight in zip(parts, layer.weight, strict=True)], dim=-1) + layer.bias


def mixed(logits: th.Tensor, unimix: float) -> distributions.Categorical:
    """Mixture of the categorical and the uniform distribution; logits (..., S, K)."""
    probs = (1 - unimix) * logits.softmax(-1) + unimix / logits.shape[-1]
    return distributions.Categorical(probs=probs, validate_args=False)


def draw(distribution: distributions.Categorical, uniform: th.Tensor) -> th.Tensor:
    """Class indices by the inverse CDF."""
    return (distribution.probs.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1).clamp(max=distribution.probs.shape[-1] - 1)


def straight_through(distribution: distributions.Categorical, indices: th.Tensor) -> th.Tensor:
    one_hot = F.one_hot(indices, distribution.probs.shape[-1]).to(distribution.probs.dtype)
    return one_hot + distribution.probs - distribution.probs.detach()


# ---- encoder and decoder ----


def encode_image(tower: ConvEncoder, by_key: dict[str, th.Tensor]) -> th.Tensor:
    geometry = tower.tower
    images = [
        (by_key[key].to(unit.low.dtype) - unit.low) / unit.span for key, unit in zip(geometry.keys, tower.to_unit, strict=True)
    ]
    x = F.pad(th.cat(images, 1) - 0.5, (0, geometry.pad_width, 0, geometry.pad_height), mode="replicate")
    for conv, _, norm, _ in tower.stages:  # type: ignore[misc]
        x = silu(over_channels(F.max_pool2d(F.conv2d(x, conv.weight, conv.bias, padding=2), 2), norm.weight))
    return x.permute(0, 2, 3, 1).flatten(1)


def one_hots(observation: th.Tensor, space: Any) -> th.Tensor:
    indices = class_indices(observation, class_starts(space))
    sizes = class_counts(space)
    assert sizes is not None
    return th.cat([F.one_hot(indices[:, i], size) for i, size in enumerate(sizes)], dim=-1)


def encode(encoder: Any, observations: dict[str, th.Tensor]) -> th.Tensor:
    features, vectors = [], []
    for key in encoder.vector_keys:
        space, value = encoder.spaces[key], observations[key]
        vectors.append(symlog(value.flatten(1)) if class_counts(space) is None else one_hots(value, space))
    if vectors:
        dtype = encoder.mlp[0][0].weight.dtype
        features.append(mlp(encoder.mlp, th.cat([vector.to(dtype) for vector in vectors], dim=-1)))
    return th.cat(features + [encode_image(tower, observations) for tower in encoder.towers], dim=-1)


def upsampled(layer: UpsampledConv2d, x: th.Tensor) -> th.Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), layer.weight, layer.bias, padding=2)


def decode_image(decoder: ConvDecoder, deter: th.Tensor, stoch: th.Tensor) -> dict[str, th.Tensor]:
    tower = decoder.tower
    coarse = (tower.coarse_height, tower.coarse_width)
    x = block_dense(decoder.from_deter, deter).unflatten(-1, (decoder.blocks, *coarse, -1)).permute(0, 2, 3, 1, 4).flatten(3)
    hidden, output = decoder.from_stoch
    x = x + dense(output, mlp([hidden], stoch)).unflatten(-1, (*coarse, -1))  # type: ignore[arg-type]
    x = silu(rms_norm(x, decoder.norm.weight)).permute(0, 3, 1, 2)
    for conv, norm, _ in decoder.stages:  # type: ignore[misc]
        x = silu(over_channels(upsampled(conv, x), norm.weight))
    pixels = th.sigmoid(upsampled(decoder.output, x))[..., : tower.height, : tower.width]
    return dict(zip(tower.keys, pixels.split(tower.key_channels, dim=1), strict=True))


def reconstruction_loss(decoder: Any, deter: th.Tensor, stoch: th.Tensor, observations: dict[str, th.Tensor]) -> th.Tensor:
    """Loss (N,), summed over keys and pixels."""
    loss = deter.new_zeros(len(deter))
    units = dict(zip(decoder.image_keys, decoder.to_unit, strict=True))
    for tower in decoder.towers:
        for key, pixels in decode_image(tower, deter, stoch).items():
            target = (observations[key].to(deter.dtype) - units[key].low) / units[key].span
            loss = loss + (pixels - target).pow(2).flatten(1).sum(-1)
    if decoder.mlp is not None:
        x = mlp(decoder.mlp, th.cat([stoch, deter], dim=-1))
        for key, layer in zip(decoder.vector_keys, decoder.vector_outputs, strict=True):
            output, space = dense(layer, x), decoder.spaces[key]
            sizes = class_counts(space)
            if sizes is None:
                loss = loss + (output - symlog(observations[key].flatten(1))).pow(2).sum(-1)
            else:
                indices = class_indices(observations[key], class_starts(space))
                for i, logits in enumerate(output.split(sizes, dim=-1)):
                    loss = loss + F.cross_entropy(logits, indices[:, i], reduction="none")
    return loss


# ---- heads ----


def two_hot(head: Any, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Logits and mean of a two-hot head."""
    logits = dense(head.output, mlp(head.mlp, features))
    weighted = logits.softmax(-1) * head.bins
    half = weighted.shape[-1] // 2
    mean = (weighted[..., :half].flip(-1) + weighted[..., -half:]).sum(-1)  # from both ends: 0 for uniform probabilities
    return logits, mean + (weighted[..., half] if weighted.shape[-1] % 2 else 0)


def two_hot_loss(logits: th.Tensor, bins: th.Tensor, target: th.Tensor) -> th.Tensor:
    """Cross-entropy with a dense target."""
    below = ((bins <= target.unsqueeze(-1)).sum(-1) - 1).clamp(0, len(bins) - 1)
    above = (len(bins) - (bins > target.unsqueeze(-1)).sum(-1)).clamp(0, len(bins) - 1)
    equal = below == above
    to_below = th.where(equal, 1, (bins[below] - target).abs())
    to_above = th.where(equal, 1, (bins[above] - target).abs())
    total = to_below + to_above
    dense_target = F.one_hot(below, len(bins)) * (to_above / total).unsqueeze(-1)
    dense_target = dense_target + F.one_hot(above, len(bins)) * (to_below / total).unsqueeze(-1)
    return -(dense_target * logits.log_softmax(-1)).sum(-1)


class Reference:
    """
    Objective of one policy.

    :param policy: policy whose parameters are used
    :param settings: those of :class:`DreamerLoss`
    """

    def __init__(self, policy: DreamerPolicy, **settings: Any):
        self.policy, self.settings = policy, settings
        self.scales = {**LOSS_SCALES, **(settings.get("loss_scales") or {})}
        self.sizes = class_counts(policy.action_space)

    def core(self, deter, stoch, action):
        """Next deter."""
        core = self.policy.world_model.rssm.core
        action = action / action.abs().clamp(min=1).detach()
        inputs = [mlp([core.from_deter], deter), mlp([core.from_stoch], stoch), mlp([core.from_action], action)]
        x = th.cat([th.cat([part, *inputs], dim=-1) for part in deter.chunk(core.blocks, dim=-1)], dim=-1)
        for layer, norm in zip(core.hidden[::3], core.hidden[1::3], strict=True):
            x = silu(rms_norm(block_dense(layer, x), norm.weight))
        gates = [part.chunk(3, dim=-1) for part in block_dense(core.gates, x).chunk(core.blocks, dim=-1)]
        reset, candidate, update = (th.cat([part[i] for part in gates], dim=-1) for i in range(3))
        update = th.sigmoid(update - 1)
        return update * th.tanh(th.sigmoid(reset) * candidate) + (1 - update) * deter

    def latent(self, net, x):
        size = self.policy.size
        return dense(net[1], mlp(net[0], x)).unflatten(-1, (size.stoch, size.classes))

    def encode_action(self, action, dtype):
        if self.sizes is None:
            return action.to(dtype)
        return th.cat([F.one_hot(action[..., i].long(), size) for i, size in enumerate(self.sizes)], dim=-1).to(dtype)

    def action_distributions(self, features):
        """One distribution for each action dimension."""
        actor = self.policy.actor
        x = mlp(actor.mlp, features)
        if self.sizes is None:
            mean, std = th.tanh(dense(actor.output, x)), 0.1 + 0.9 * th.sigmoid(dense(actor.output_std, x) + 2)
            return [
                distributions.Normal(m, s, validate_args=False) for m, s in zip(mean.unbind(-1), std.unbind(-1), strict=True)
            ]
        return [mixed(logits, actor.unimix) for logits in dense(actor.output, x).split(self.sizes, dim=-1)]

    def act(self, distribution, noise):
        return distribution.loc + distribution.scale * noise if self.sizes is None else draw(distribution, noise)

    def observe(self, embed, actions, is_first, initial, noise):
        """States and posterior logits, (B, T, ...)."""
        rssm, size = self.policy.world_model.rssm, self.policy.size
        deter, stoch = initial.deter, initial.stoch.flatten(1)
        deters, stochs, logits = [], [], []
        for t in range(embed.shape[1]):
            keep = 1 - is_first[:, t, None].to(deter.dtype)
            deter = self.core(deter * keep, stoch * keep, actions[:, t] * keep)
            logit = self.latent(rssm.posterior_net, th.cat([deter, embed[:, t]], dim=-1))
            posterior = mixed(logit, size.unimix)
            stoch = straight_through(posterior, draw(posterior, noise[:, t])).flatten(1)
            deters.append(deter)
            stochs.append(stoch)
            logits.append(logit)
        return th.stack(deters, 1), th.stack(stochs, 1), th.stack(logits, 1)

    def world_model_terms(self, batch, features, logits, embed_obs):
        world_model, size, settings = self.policy.world_model, self.policy.size, self.settings
        deter, stoch = features.split([size.deter, size.stoch * size.classes], dim=-1)
        prior_logits = self.latent(world_model.rssm.prior_net, deter)
        kl = distributions.kl_divergence
        dynamics = kl(mixed(logits.detach(), size.unimix), mixed(prior_logits, size.unimix)).sum(-1)
        representation = kl(mixed(logits, size.unimix), mixed(prior_logits.detach(), size.unimix)).sum(-1)
        reward_logits, _ = two_hot(world_model.reward_head, features)
        goes_on = dense(world_model.continue_head.output, mlp(world_model.continue_head.mlp, features)).squeeze(-1)
        target = settings["gamma"] * (1 - batch.is_terminal.to(deter.dtype))
        return {
            "reconstruction": reconstruction_loss(
                world_model.decoder, deter.flatten(0, 1), stoch.flatten(0, 1), embed_obs
            ).unflatten(0, deter.shape[:2]),
            "reward": two_hot_loss(reward_logits, world_model.reward_head.bins, batch.rewards),
            "continue": F.binary_cross_entropy_with_logits(goes_on, target, reduction="none"),
            "dynamics": dynamics.clamp(min=settings["free_nats"]),
            "representation": representation.clamp(min=settings["free_nats"]),
        }

    def imagine(self, features, noise):
        """Features (N, H + 1, F) and actions (N, H + 1, action_dim)."""
        rssm, size = self.policy.world_model.rssm, self.policy.size
        all_features, all_actions = [features], []
        for k in range(noise.stoch.shape[1] + 1):
            chosen = [self.act(d, noise.actions[:, k, i]) for i, d in enumerate(self.action_distributions(all_features[-1]))]
            all_actions.append(th.stack(chosen, dim=-1))
            if k < noise.stoch.shape[1]:
                deter, stoch = all_features[-1].split([size.deter, size.stoch * size.classes], dim=-1)
                # Box actions are rounded to float32, as in the replay buffer.
                action = all_actions[-1].float() if self.sizes is None else all_actions[-1]
                deter = self.core(deter, stoch, self.encode_action(action, deter.dtype))
                prior = mixed(self.latent(rssm.prior_net, deter), size.unimix)
                stoch = straight_through(prior, draw(prior, noise.stoch[:, k])).flatten(1)
                all_features.append(th.cat([deter, stoch], dim=-1))
        return th.stack(all_features, 1).detach(), th.stack(all_actions, 1).detach()

    def terms(self, batch: SequenceBatch, noise: UpdateNoise) -> dict[str, th.Tensor]:
        """:return: every loss term by name, before the mean"""
        policy, settings = self.policy, self.settings
        world_model, lam = policy.world_model, settings["return_lambda"]
        lead = batch.rewards.shape
        observations = {key: value.flatten(0, 1) for key, value in as_tensor_dict(batch.observations).items()}
        observations = {key: observations[key] for key in as_space_dict(policy.observation_space)}
        embed = encode(world_model.encoder, observations).unflatten(0, lead)
        actions = self.encode_action(batch.prev_actions, embed.dtype)
        deter, stoch, logits = self.observe(embed, actions, batch.is_first, batch.initial, noise.posterior)
        features = th.cat([deter, stoch], dim=-1)
        terms = self.world_model_terms(batch, features, logits, observations)

        recent = features[:, -settings["imagine_last"] :] if settings.get("imagine_last") else features
        length = recent.shape[1]
        imagined, imagined_actions = self.imagine(recent.flatten(0, 1).detach(), noise.imagination)
        value_logits, value = two_hot(policy.critic, imagined)
        slow = two_hot(policy.critic_target, imagined)[1].detach()
        reward = two_hot(world_model.reward_head, imagined)[1].detach()
        head = world_model.continue_head
        goes_on = th.sigmoid(dense(head.output, mlp(head.mlp, imagined)).squeeze(-1)).detach()
        weight = goes_on.cumprod(1)[:, :-1]
        returns = [value[:, -1].detach()]
        for t in range(value.shape[1] - 1, 0, -1):
            ahead = (1 - lam) * value[:, t].detach() + lam * returns[-1]
            returns.append(reward[:, t] + goes_on[:, t] * ahead)
        returned = th.stack(returns[:0:-1], 1)
        normalizer = policy.return_normalizer
        normalizer.update(returned)
        advantage = (returned - value[:, :-1].detach()) / normalizer.scale
        by_dimension = self.action_distributions(imagined[:, :-1])
        log_prob = th.stack([d.log_prob(imagined_actions[:, :-1, i]) for i, d in enumerate(by_dimension)]).sum(0)
        entropy = th.stack([d.entropy() for d in by_dimension]).sum(0)
        terms["actor"] = -weight * (log_prob * advantage + settings["ent_coef"] * entropy)
        bins, kept = policy.critic.bins, value_logits[:, :-1]
        terms["critic"] = weight * (two_hot_loss(kept, bins, returned) + two_hot_loss(kept, bins, slow[:, :-1]))

        rewards, is_last, is_terminal = (
            x[:, -length:].to(deter.dtype) for x in (batch.rewards, batch.is_last, batch.is_terminal)
        )
        boot = returned[:, 0].unflatten(0, (-1, length))
        replayed = [boot[:, -1]]
        for t in range(length - 1, 0, -1):
            trace = lam * (1 - is_last[:, t])
            ahead = (1 - trace) * boot[:, t] + trace * replayed[-1]
            replayed.append(rewards[:, t] + settings["gamma"] * (1 - is_terminal[:, t]) * ahead)
        targets = th.stack(replayed[:0:-1], 1)
        replay_logits, _ = two_hot(policy.critic, recent[:, :-1])
        replay_slow = two_hot(policy.critic_target, recent[:, :-1])[1].detach()
        both = two_hot_loss(replay_logits, bins, targets) + two_hot_loss(replay_logits, bins, replay_slow)
        terms["replay_critic"] = (1 - is_last[:, :-1]) * both
        return terms

    def loss(self, batch: SequenceBatch, noise: UpdateNoise) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """:return: the total loss and its terms"""
        terms = self.terms(batch, noise)
        return th.stack([scale * terms[name].mean() for name, scale in self.scales.items()]).sum(), terms
