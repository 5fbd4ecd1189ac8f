"""The objective: world model, actor and critic losses, summed into one number."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.distributions import BoundedNormal, MultiCategorical, OneHotCategoricalST, SymexpTwoHot
from sb3_dreamer.common.returns import lambda_return
from sb3_dreamer.common.type_aliases import (
    ImaginationNoise,
    ImaginedTrajectory,
    LatentState,
    SequenceBatch,
    UpdateNoise,
)
from sb3_dreamer.dreamerv3.imagination import imagine
from sb3_dreamer.dreamerv3.policies import DreamerPolicy

LOSS_SCALES: dict[str, float] = {
    "reconstruction": 1.0,
    "reward": 1.0,
    "continue": 1.0,
    "dynamics": 1.0,
    "representation": 0.1,
    "actor": 1.0,
    "critic": 1.0,
    "replay_critic": 0.3,
}


HARMONY = "harmony"
AUTO = "auto"
AUTO_ENT_COEF = 0.05, 0.003  # at the start and at the end of `learn`
LossScales = Mapping[str, float | Mapping[str, float]] | str


def split_loss_scales(loss_scales: LossScales | None) -> tuple[dict[str, float], dict[str, float]]:
    """
    :param loss_scales: as a user gives them
    :return: weight of each observation key in the reconstruction loss, and weight of each loss
    """
    given = {} if loss_scales is None or isinstance(loss_scales, str) else loss_scales
    scales = {**LOSS_SCALES, **given}
    reconstruction = scales["reconstruction"]
    key_scales = dict(reconstruction) if isinstance(reconstruction, Mapping) else {}
    if key_scales:
        scales["reconstruction"] = 1.0
    return key_scales, scales  # type: ignore[return-value]


def check_key_scales(key_scales: Mapping[str, float], decoded: list[str]) -> None:
    """:raises ValueError: if a key has a weight but the decoder does not reconstruct it"""
    unknown = sorted(set(key_scales) - set(decoded))
    if unknown:
        raise ValueError(f"`loss_scales['reconstruction']` must name keys that are reconstructed: {decoded}, got {unknown}")


def auto_ent_coef(progress_remaining: float, returns_differ: bool) -> float:
    """
    Weight of the entropy that falls over the run. At every weight, the policy stays random in states whose actions make no
    difference to the model, so these are explored. The last weight is small, so that good actions are taken at the end.

    .. code-block:: text

        weight    0.05 until there is something to learn, then 0.003 (0.05 / 0.003)^progress_remaining, from 0.05 to 0.003

    :param progress_remaining: from 1 to 0, below 0 after the last step of ``learn``
    :param returns_differ: see :attr:`~sb3_dreamer.common.buffers.SequenceReplayBuffer.returns_differ`
    :return: the weight
    """
    first, last = AUTO_ENT_COEF
    return last * (first / last) ** max(0.0, progress_remaining) if returns_differ else first


def actor_loss(
    log_prob: th.Tensor, entropy: th.Tensor, advantage: th.Tensor, weight: th.Tensor, *, ent_coef: float | th.Tensor
) -> th.Tensor:
    """REINFORCE with an entropy bonus (paper, actor learning). All tensors are (N, H)."""
    return -weight.detach() * (log_prob * advantage.detach() + ent_coef * entropy)


def critic_loss(value: SymexpTwoHot, returns: th.Tensor, target_value: th.Tensor) -> th.Tensor:
    """
    Cross-entropy with the lambda returns, plus cross-entropy with the values of the slow critic (the target network: a moving
    average of the critic) as a regulariser (paper, critic learning).

    :param value: the critic's distributions, one per state (...)
    :param returns: lambda returns (...)
    :param target_value: means of the slow critic (...)
    :return: (...)
    """
    return value.loss(returns, target_value)


class ImaginedReturns(NamedTuple):
    """
    Predictions along imagined trajectories: rewards, discounts (the continue head's output: probability that the episode
    continues, times gamma), values of the critic and of the slow critic, weights of the imagined states (N, H + 1), and lambda
    returns (N, H).
    """

    rewards: th.Tensor
    continues: th.Tensor
    values: th.Tensor
    target_values: th.Tensor
    weights: th.Tensor
    returns: th.Tensor


class Preview(NamedTuple):
    """
    First part of an evaluation of the objective, see :meth:`DreamerLoss.look_ahead`: terms of the world model (B, T) and
    metrics by name, weights of the losses, posterior states (B, T, ...), imagined trajectories (N, H + 1, ...), the critic's
    distributions along them, their returns, and the numbers that running means are computed from (K,): all imagined returns,
    then the size of each loss that has a weight. These are gathered from all ranks before the second part.
    """

    terms: dict[str, th.Tensor]
    metrics: dict[str, th.Tensor]
    weights: dict[str, th.Tensor]
    states: LatentState
    trajectory: ImaginedTrajectory
    value: SymexpTwoHot
    imagined: ImaginedReturns
    statistics: th.Tensor


class LossOutput(NamedTuple):
    """
    One evaluation of the objective: the scalar to minimise; its terms by name, neither averaged nor multiplied by the weights
    of the losses yet (only weights of single observation keys are already applied); the posterior states (B, T, ...); and
    intermediate results.

    Terms of the world model are (B, T), actor and critic (N, H), replay critic (B, L - 1). Imagination starts from the last L
    rows of each window.
    """

    loss: th.Tensor
    terms: dict[str, th.Tensor]
    states: LatentState
    trajectory: ImaginedTrajectory
    imagined: ImaginedReturns
    metrics: dict[str, th.Tensor]


class DreamerLoss(nn.Module):
    """
    The objective of one update. It is one module so that ``torch.compile`` and DDP can wrap it.

    A subclass may replace four methods with faster ones that return the same results: :meth:`observe`, :meth:`imagine`,
    :meth:`actor_distribution` and :meth:`predict`.

    :param policy: owns the networks
    :param imagination_horizon: H
    :param gamma: discount
    :param return_lambda: lambda of the returns
    :param ent_coef: weight of the actor's entropy; ``"auto"``: see :func:`auto_ent_coef`; the training loop calls
        :meth:`set_progress`
    :param free_nats: lower limit of dynamics and representation loss, in nats
    :param imagine_last: L, start imagination from only the last L rows of each window; 0: from all T rows
    :param loss_scales: replaces values of :data:`LOSS_SCALES`; ``"reconstruction"`` may be a dict of weights by observation
        key, 1 for keys that are not named; ``"harmony"``: weights of reward, continue and each
        reconstructed key that are computed from the running mean of their loss
    """

    def __init__(
        self,
        policy: DreamerPolicy,
        *,
        imagination_horizon: int,
        gamma: float,
        return_lambda: float,
        ent_coef: float | str,
        free_nats: float,
        imagine_last: int = 0,
        loss_scales: LossScales | None = None,
    ):
        super().__init__()
        self.policy = policy
        self.imagination_horizon = imagination_horizon
        self.gamma = gamma
        self.return_lambda = return_lambda
        self.ent_coef = ent_coef
        self.free_nats = free_nats
        self.imagine_last = imagine_last
        self.is_harmony = loss_scales == HARMONY
        self.key_scales, self.loss_scales = split_loss_scales(loss_scales)
        check_key_scales(self.key_scales, policy.world_model.decoded_keys)
        # The current weight with "auto". A tensor, so that a captured update sees its changes.
        self.falling_ent_coef: th.Tensor
        self.register_buffer("falling_ent_coef", th.tensor(AUTO_ENT_COEF[0], device=policy.device), persistent=False)
        # Statistics of this process (K,) -> those of all ranks (R, K). Replaced where torch's DDP evaluates the objective.
        self.gather: Callable[[th.Tensor], th.Tensor] = lambda statistics: statistics.unsqueeze(0)

    def set_progress(self, progress_remaining: float, returns_differ: bool) -> None:
        """With ``ent_coef="auto"``: set the weight of the entropy, see :func:`auto_ent_coef`, whose arguments these are."""
        if self.ent_coef == AUTO:
            self.falling_ent_coef.fill_(auto_ent_coef(progress_remaining, returns_differ))

    def draw_noise(self, batch_size: int, batch_length: int) -> UpdateNoise:
        """
        :param batch_size: B
        :param batch_length: T
        :return: all random numbers of one update, drawn on the device
        """
        policy, horizon = self.policy, self.imagination_horizon
        n = batch_size * (self.imagine_last or batch_length)  # N = B * L starts
        return UpdateNoise(
            posterior=th.rand(batch_size, batch_length, policy.size.stoch, device=policy.device),
            imagination=ImaginationNoise(
                stoch=th.rand(n, horizon, policy.size.stoch, device=policy.device),
                actions=policy.actor.draw_noise(n, horizon + 1),
            ),
        )

    def forward(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> LossOutput:
        """
        :param batch: B windows of T rows
        :param noise: drawn if None
        :return: the loss, its terms and intermediate results
        """
        preview = self.look_ahead(batch, self.draw_noise(*batch.rewards.shape) if noise is None else noise)
        return self.evaluate(batch, preview, self.gather(preview.statistics))

    def look_ahead(self, batch: SequenceBatch, noise: UpdateNoise) -> Preview:
        """
        The losses of the world model, imagined trajectories and their returns.

        :param batch: B windows of T rows
        :param noise: all noise of the update
        :return: what :meth:`evaluate` needs
        """
        world_model = self.policy.world_model
        weights = self.policy.loss_weights() if self.is_harmony else {}
        key_scales = (
            {key: weights[f"reconstruction/{key}"] for key in world_model.decoded_keys} if weights else self.key_scales
        )
        settings: dict[str, Any] = dict(free_nats=self.free_nats, gamma=self.gamma, key_scales=key_scales)

        # ---- world model ----
        states, posterior = self.observe(batch, noise.posterior)  # (B, T, ...)
        terms, by_key, metrics = world_model.loss(batch, states, posterior, **settings)  # (B, T) each
        metrics |= {f"world_model/weight/{name}": weight for name, weight in weights.items()}

        # ---- imagine from the detached posterior states ----
        start = LatentState(*(part.flatten(0, 1).detach() for part in self.recent(states)))  # (N, ...)
        trajectory = self.imagine(start, noise.imagination)  # (N, H + 1, ...)
        value = self.policy.critic(trajectory.features)  # distributions (N, H + 1)
        imagined = self.imagined_returns(trajectory, value)

        statistics = imagined.returns.flatten()
        if self.is_harmony:
            sizes = world_model.losses_above_floor(batch, terms, by_key, gamma=self.gamma)
            statistics = th.cat([statistics, *(sizes[name].unsqueeze(0) for name in self.policy.loss_weights.names)])  # (K,)
        return Preview(terms, metrics, weights, states, trajectory, value, imagined, statistics.detach())

    def recent(self, states: LatentState) -> LatentState:
        """:return: of states (B, T, ...) those from which trajectories are imagined (B, L, ...)"""
        return LatentState(*(part[:, -self.imagine_last :] for part in states))  # `[-0:]` takes all rows

    def evaluate(self, batch: SequenceBatch, preview: Preview, statistics: th.Tensor) -> LossOutput:
        """
        Update the running means, then add the losses of actor and critic.

        :param batch: B windows of T rows
        :param preview: result of :meth:`look_ahead` for this batch
        :param statistics: those of all R ranks (R, K)
        :return: the loss, its terms and intermediate results
        """
        terms, metrics, weights, states, trajectory, value, imagined, _ = preview
        returns, sizes = statistics.split([imagined.returns.numel(), statistics.shape[1] - imagined.returns.numel()], dim=1)
        self.policy.return_normalizer.update(returns)
        if self.is_harmony:
            self.policy.loss_weights.update(sizes.mean(0))

        # ---- actor and critic ----
        actor_term, actor_metrics = self.actor_terms(trajectory, imagined)
        # The last state has no return: append a zero, and drop its loss. Dropping its logits instead would copy all logits.
        padded = F.pad(imagined.returns, (0, 1))  # (N, H + 1)
        of_critic = imagined.weights[:, :-1] * critic_loss(value, padded, imagined.target_values)[:, :-1]  # (N, H)
        replay_critic = self.replay_critic_term(batch, self.recent(states), imagined.returns[:, 0])  # (B, L - 1)
        terms = terms | {"actor": actor_term, "critic": of_critic, "replay_critic": replay_critic}

        self._check_shapes(terms, batch.rewards.shape, imagined.returns.shape, len(batch.rewards))
        scaled = [scale * weights.get(name, 1.0) * terms[name].mean() for name, scale in self.loss_scales.items()]
        loss = th.stack(scaled).sum()
        metrics = metrics | actor_metrics | self._loss_metrics(loss, terms)
        return LossOutput(loss, terms, states, trajectory, imagined, metrics)

    # ---- four methods that a faster subclass may override ----

    def observe(self, batch: SequenceBatch, noise: th.Tensor) -> tuple[LatentState, OneHotCategoricalST]:
        """As :meth:`WorldModel.observe`."""
        return self.policy.world_model.observe(batch, noise)

    def imagine(self, start: LatentState, noise: ImaginationNoise) -> ImaginedTrajectory:
        """As :func:`~sb3_dreamer.dreamerv3.imagination.imagine`."""
        return imagine(self.policy.world_model, self.policy.actor, start, noise)

    def actor_distribution(self, trajectory: ImaginedTrajectory) -> BoundedNormal | MultiCategorical:
        """
        :param trajectory: imagined trajectories (N, H + 1, ...)
        :return: the actor's distributions (N, H + 1), with gradient
        """
        return self.policy.actor(trajectory.features)

    def predict(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param features: of the imagined trajectories (N, H + 1, F)
        :return: rewards, discounts and the slow critic's values (N, H + 1)
        """
        world_model = self.policy.world_model
        heads = world_model.reward_head, world_model.continue_head, self.policy.critic_target
        rewards, continues, target_values = (head(features).mean() for head in heads)  # 3 x (N, H + 1)
        return rewards, continues, target_values

    # ---- terms ----

    @th.no_grad()
    def imagined_returns(self, trajectory: ImaginedTrajectory, value: SymexpTwoHot) -> ImaginedReturns:
        """
        .. code-block:: text

            states    s_0   s_1   s_2  ...  s_H
            heads     r_k, c_k, v_k: reward, discount and value (of the critic) predicted in s_k; c_k contains gamma
            weights   w_k = c_0 c_1 ... c_k             about zero if the trajectory starts in a terminal state
            returns   R_k = r_{k+1} + c_{k+1} ((1 - lambda) v_{k+1} + lambda R_{k+1}),  R_H = v_H

        :param trajectory: imagined trajectories (N, H + 1, ...)
        :param value: the critic's distributions (N, H + 1)
        :return: predictions and lambda returns
        """
        rewards, continues, target_values = self.predict(trajectory.features)  # 3 x (N, H + 1)
        values = value.mean()
        returns = lambda_return(rewards, continues, values, return_lambda=self.return_lambda)  # (N, H)
        return ImaginedReturns(rewards, continues, values, target_values, continues.cumprod(dim=1), returns)

    def actor_terms(self, trajectory: ImaginedTrajectory, imagined: ImaginedReturns) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        :param trajectory: imagined trajectories (N, H + 1, ...)
        :param imagined: their predictions and returns
        :return: actor loss (N, H) and metrics
        """
        distribution = self.actor_distribution(trajectory)  # (N, H + 1)
        # The last action has no advantage. Slice here, after the distribution: slicing the features would copy them.
        log_prob = distribution.log_prob(trajectory.actions).sum(-1)[:, :-1]  # (N, H)
        entropy = distribution.entropy().sum(-1)[:, :-1]  # (N, H)
        normalizer = self.policy.return_normalizer
        advantage = (imagined.returns - imagined.values[:, :-1]) / normalizer.scale  # (N, H)
        weights = imagined.weights[:, :-1]  # (N, H)
        ent_coef: Any = self.falling_ent_coef if self.ent_coef == AUTO else self.ent_coef
        loss = actor_loss(log_prob, entropy, advantage, weights, ent_coef=ent_coef)
        # Clones, here and below: the buffers change in place while metrics wait for the logger.
        metrics = {"actor_critic/ent_coef": ent_coef.clone()} if self.ent_coef == AUTO else {}
        metrics |= {
            "actor_critic/entropy": entropy.mean().detach(),
            "actor_critic/advantage_abs": advantage.abs().mean(),
            "actor_critic/return": imagined.returns.mean(),
            "actor_critic/value": imagined.values.mean(),
            "actor_critic/reward": imagined.rewards.mean(),
            "actor_critic/return_low": normalizer.low.clone(),
            "actor_critic/return_high": normalizer.high.clone(),
        }
        return loss, metrics

    def replay_critic_term(self, batch: SequenceBatch, states: LatentState, bootstrap: th.Tensor) -> th.Tensor:
        """
        Train the critic on replayed rewards, too. The bootstrap value of each state is the return imagined from it. As in the
        authors' code of 2025, the states are not detached, so this loss also trains the world model.

        :param batch: B windows of T rows
        :param states: posterior of the last L rows, not detached (B, L, ...)
        :param bootstrap: imagined return of each of these states (B * L,)
        :return: (B, L - 1), 0 at the last row of an episode
        """
        length = states.deter.shape[1]
        rewards, is_last, is_terminal = (
            part[:, -length:] for part in (batch.rewards, batch.is_last, batch.is_terminal)
        )  # (B, L)
        features = self.policy.world_model.rssm.features(states)  # (B, L, F)
        returns = lambda_return(
            rewards,
            self.gamma * (1.0 - is_terminal.to(rewards.dtype)),
            bootstrap.unflatten(0, (-1, length)),
            return_lambda=self.return_lambda,
            is_last=is_last,
        )  # (B, L - 1)
        value = self.policy.critic(features[:, :-1])
        with th.no_grad():
            target_value = self.policy.critic_target(features[:, :-1]).mean()
        return (1.0 - is_last[:, :-1].to(rewards.dtype)) * critic_loss(value, returns, target_value)

    def _check_shapes(self, terms: dict[str, th.Tensor], replayed: th.Size, imagined: th.Size, batch_size: int) -> None:
        """Check every term before its mean is taken: after the mean a wrong axis would go unnoticed."""
        assert terms.keys() == self.loss_scales.keys(), (sorted(terms), sorted(self.loss_scales))
        of_critic = (batch_size, imagined[0] // batch_size - 1)  # (B, L - 1)
        shapes = {"actor": imagined, "critic": imagined, "replay_critic": of_critic}
        for name, term in terms.items():
            assert term.shape == shapes.get(name, replayed), (name, term.shape)

    @staticmethod
    def _loss_metrics(loss: th.Tensor, terms: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        of_actor_critic = ("actor", "critic", "replay_critic")
        metrics = {
            f"{'actor_critic' if name in of_actor_critic else 'world_model'}/{name}_loss": term.detach().mean()
            for name, term in terms.items()
        }
        return {**metrics, "train/loss": loss.detach()}
