"""How wrong the predictions of a world model are, by the number of steps without observation, in numbers and words."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure

from sb3_dreamer.common.pictures import audit_figure
from sb3_dreamer.common.preprocessing import as_array_dict, as_space_dict
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.dreamerv3.networks import MultiDecoder
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.predictions import OpenLoop

if TYPE_CHECKING:
    from sb3_dreamer.dreamerv3 import DreamerV3

# A bias is a fault if it is a larger share of its scale and has more standard errors.
LARGEST_BIAS, LEAST_SIGNIFICANCE = 0.2, 4.0
# A reconstruction is a fault from this error on, relative to a decoder that knows only the mean.
LARGEST_ERROR = 0.9
# The prior is a fault below this share of what the posterior knows.
LEAST_PRIOR_SHARE = 0.1
# Size to which a bias is compared if no reward and no end was seen: a reward of 1, an end in 100 rows.
FALLBACK_SCALE = {"reward": 1.0, "continue": 0.01, "value": 1.0}
N_QUANTILES = 10


class StepErrors(NamedTuple):
    """
    Predictions against what was seen, by horizon step 1 to H: mean difference and mean absolute difference (H,). ``step`` is
    the step from which on the mean difference ``later_bias`` is most significant, ``significance`` says how many standard
    errors it has, and ``scale`` is the size of what was seen from this step on, to which it is compared.
    """

    bias: np.ndarray
    error: np.ndarray
    scale: float
    step: int
    later_bias: float
    significance: float

    @property
    def is_fault(self) -> bool:
        """Whether the bias is large and not by chance."""
        return self.significance > LEAST_SIGNIFICANCE and abs(self.later_bias) > LARGEST_BIAS * self.scale


class Calibration(NamedTuple):
    """
    Rows sorted by what was predicted, in groups of equal size: mean prediction and mean of what was seen, (10,) each. They
    are equal for a calibrated head.
    """

    predicted: np.ndarray
    seen: np.ndarray


class Finding(NamedTuple):
    """One sentence about a part of the model, and whether it is in order."""

    part: str
    is_fault: bool
    text: str


class Audit(NamedTuple):
    """
    Result of :func:`audit_world_model`; ``str(audit)`` is its verdict.

    - ``observations``: error of predicted observations by horizon step (H,), see :func:`observation_errors`
    - ``reconstructions``: the same of observed rows, a number each
    - ``heads``: ``reward``, ``continue`` (probability that the episode continues), both against the replay buffer, and
      ``value``: the critic in the predicted state against the critic in the state that has seen the observation
    - ``calibrations``: of ``reward`` and ``continue`` in predicted states, and of ``value`` in observed states against the
      discounted return of the replay buffer, which older policies collected
    - ``ends``: mean predicted probability of an end where an episode terminated, by horizon step (H,), NaN if none did
    - ``prior_share``: share of what the posterior knows about stoch that the prior knows, too
    - ``findings``: the verdict
    """

    observations: dict[str, np.ndarray]
    reconstructions: dict[str, float]
    heads: dict[str, StepErrors]
    calibrations: dict[str, Calibration]
    ends: np.ndarray
    prior_share: float
    findings: list[Finding]

    @property
    def is_passed(self) -> bool:
        """Whether no part has a fault."""
        return not any(finding.is_fault for finding in self.findings)

    def figure(self) -> Figure:
        """:return: errors by horizon step and calibration, of reward, continue and value"""
        errors = {name: (one.bias, one.error) for name, one in self.heads.items()}
        return audit_figure(errors, {name: (one.predicted, one.seen) for name, one in self.calibrations.items()})

    def __str__(self) -> str:
        return "\n".join(f"{'FAULT' if one.is_fault else 'ok':5}  {one.part:9}  {one.text}" for one in self.findings)


# ---- errors of observations ----


def has_pixels(policy: DreamerPolicy, key: str) -> bool:
    """:return: whether the default decoder predicts an image of this key"""
    decoder = policy.world_model.decoder
    return isinstance(decoder, MultiDecoder) and key in decoder.image_keys


@th.no_grad()
def pixels_of(policy: DreamerPolicy, key: str, observations: np.ndarray) -> np.ndarray:
    """
    :param policy: policy
    :param key: of an image, see :func:`has_pixels`
    :param observations: (..., \\*space.shape)
    :return: pixels in [0, 1], channels first (..., C, h, w)
    """
    decoder, space = policy.world_model.decoder, as_space_dict(policy.observation_space)[key]
    assert isinstance(decoder, MultiDecoder)
    to_unit: Any = decoder.to_unit[decoder.image_keys.index(key)]
    lead = observations.shape[: observations.ndim - len(space.shape or ())]
    flat = th.as_tensor(observations.reshape(-1, *(space.shape or ())), device=policy.device)
    pixels = to_unit(flat).cpu().numpy()  # (N, C, h, w)
    return pixels.reshape(*lead, *pixels.shape[1:])


def relative_error(truth: np.ndarray, predicted: np.ndarray, burn_in: int, is_valid: np.ndarray) -> np.ndarray:
    """
    Error relative to that of the mean over all rows, which knows nothing of the sequence: 0 is exact, 1 as wrong as the mean.

    :param truth: (B, T, ...)
    :param predicted: the same shape
    :param burn_in: number of observed rows
    :param is_valid: (B, T)
    :return: root of the ratio of summed squared errors by horizon step (H,); NaN if no row is valid or the truth is constant
    """
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    mean = truth.mean(axis=(0, 1))
    axes = tuple(range(2, truth.ndim))
    errors, deviations = (((truth - other) ** 2).sum(axis=axes) * is_valid for other in (predicted, mean))  # (B, T)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = errors.sum(0) / (deviations.mean() * is_valid.sum(0) / is_valid.mean())  # (T,)
    return np.sqrt(np.where(np.isfinite(ratios), ratios, np.nan))[burn_in:]


def mean_where(values: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """:return: mean over the valid sequences of each row (T,), NaN if there is none"""
    count = is_valid.sum(0)
    return np.where(count > 0, (values * is_valid).sum(0) / np.maximum(count, 1), np.nan)


def finite_mean(values: np.ndarray) -> float:
    """:return: mean of the numbers that are finite, NaN if there is none"""
    is_finite = np.isfinite(values)
    return float(values[is_finite].mean()) if is_finite.any() else math.nan


def observation_errors(policy: DreamerPolicy, result: OpenLoop) -> dict[str, np.ndarray]:
    """
    :param policy: policy
    :param result: open-loop predictions
    :return: by name, ``obs`` or ``obs/KEY`` of a Dict, errors by horizon step (H,): :func:`relative_error` or the share of
        wrong classes
    """
    truth, predicted = as_array_dict(result.observations), as_array_dict(result.predicted)
    errors = {}
    for key, prediction in sorted(predicted.items()):
        space, target = as_space_dict(policy.observation_space)[key], truth[key]
        name = f"obs/{key}" if isinstance(policy.observation_space, spaces.Dict) else "obs"
        if not isinstance(space, spaces.Box):
            is_wrong = (target != prediction).reshape(*target.shape[:2], -1).mean(-1)  # (B, T)
            errors[name] = mean_where(is_wrong, result.is_valid)[result.burn_in :]
            continue
        if has_pixels(policy, key):
            target, prediction = pixels_of(policy, key, target), pixels_of(policy, key, prediction)
        errors[name] = relative_error(target, prediction, result.burn_in, result.is_valid)
    return errors


# ---- errors of rewards, ends and values ----


def step_errors(predicted: np.ndarray, seen: np.ndarray, is_valid: np.ndarray, sizes: np.ndarray, empty: float) -> StepErrors:
    """
    :param predicted: (B, H)
    :param seen: (B, H)
    :param is_valid: (B, H)
    :param sizes: their mean is the scale of :class:`StepErrors` (B, H)
    :param empty: scale if all sizes are 0
    :return: errors by horizon step
    """
    difference = predicted.astype(np.float64) - seen  # (B, H)
    # Sums from each step on, by sequence. Rows of a sequence are not independent, so the standard error counts sequences.
    sums, counts, later_sizes = (
        np.cumsum((part * is_valid)[:, ::-1], axis=1)[:, ::-1] for part in (difference, np.ones_like(difference), sizes)
    )  # (B, H)
    total = np.maximum(counts.sum(0), 1)  # (H,)
    later_bias = sums.sum(0) / total  # (H,)
    scale = np.where(later_sizes.sum(0) > 0, later_sizes.sum(0) / total, empty)  # (H,)
    standard_error = np.sqrt(((sums - later_bias * counts) ** 2).sum(0)) / total  # (H,)
    significance = np.abs(later_bias) / np.maximum(standard_error, 1e-9)  # (H,)
    bias, error = mean_where(difference, is_valid), mean_where(np.abs(difference), is_valid)  # (H,), (H,)
    step = int(significance.argmax())
    # The step before is biased, too, if its own bias is as large.
    while step > 0 and np.sign(later_bias[step]) * bias[step - 1] > LARGEST_BIAS * scale[step]:
        step -= 1
    return StepErrors(bias, error, float(scale[step]), step + 1, float(later_bias[step]), float(significance[step]))


def calibration(predicted: np.ndarray, seen: np.ndarray) -> Calibration:
    """
    :param predicted: (n,)
    :param seen: (n,)
    :return: means of up to 10 groups of equal size
    """
    order = np.argsort(predicted, kind="stable")
    groups = [group for group in np.array_split(order, N_QUANTILES) if len(group)]
    return Calibration(*(np.array([values[group].mean() for group in groups]) for values in (predicted, seen)))


def seen_returns(batch: SequenceBatch, values: np.ndarray, gamma: float) -> np.ndarray:
    """
    :param batch: windows of the replay buffer
    :param values: critic's values in the observed states (B, T)
    :param gamma: discount factor
    :return: discounted sum of the rewards after each row (B, T). At the end of a window and of a truncated episode, the value
        stands for what follows.
    """
    rewards, is_last, is_terminal = (part.cpu().numpy() for part in (batch.rewards, batch.is_last, batch.is_terminal))
    returns = values * (1.0 - is_terminal)  # (B, T)
    for t in reversed(range(returns.shape[1] - 1)):
        goes_on = rewards[:, t + 1] + gamma * returns[:, t + 1]  # (B,)
        returns[:, t] = np.where(is_last[:, t], returns[:, t], goes_on)
    return returns


def share_known_by_prior(policy: DreamerPolicy, batch: SequenceBatch, seed: int) -> float:
    """
    :param policy: policy
    :param batch: windows of the replay buffer
    :param seed: seed of the posterior's samples
    :return: 1 - KL(posterior || prior) / KL(posterior || mean posterior), in observed states; NaN if the posterior is
        always the same
    """
    shape = (*batch.rewards.shape, policy.size.stoch)
    generator = th.Generator(policy.device).manual_seed(seed)
    noise = th.rand(shape, device=policy.device, generator=generator)  # (B, T, S)
    states, posterior = policy.world_model.observe(batch, noise)
    prior = policy.world_model.rssm.prior(states.deter)
    probs = posterior.probs  # (B, T, S, K)
    mean = probs.mean((0, 1)).log()  # (S, K)
    to_prior, to_mean = ((probs * (posterior.log_probs - other)).sum((-2, -1)).mean() for other in (prior.log_probs, mean))
    return 1.0 - float(to_prior) / float(to_mean) if to_mean > 1e-3 else math.nan


# ---- the verdict ----


def no_knowledge_error(space: spaces.Space, truth: np.ndarray) -> float:
    """:return: error of :func:`observation_errors` of a model that knows only the mean, or only the most frequent class"""
    if isinstance(space, spaces.Box):
        return 1.0
    columns = truth.reshape(truth.shape[0] * truth.shape[1], -1).T  # (n, B * T)
    return float(np.mean([1.0 - np.unique(column, return_counts=True)[1].max() / len(column) for column in columns]))


def steps_foreseen(ends: np.ndarray) -> int:
    """:return: number of steps that an end is foreseen with a probability of at least 1/2, up to the last step with an end"""
    is_missed = ends < 0.5  # False where NaN
    return int(is_missed.argmax()) if is_missed.any() else int(np.flatnonzero(np.isfinite(ends)).max(initial=-1) + 1)


def bias_finding(part: str, what: str, errors: StepErrors, high: str, low: str) -> Finding:
    """
    :param part: of the model
    :param what: beginning of the sentence
    :param errors: of this prediction
    :param high: what a bias above 0 is called
    :param low: what a bias below 0 is called
    :return: whether the bias is a fault, and its size
    """
    if not errors.is_fault:
        return Finding(part, False, f"{what}: no bias above {LARGEST_BIAS:.0%}.")
    word = high if errors.later_bias > 0 else low
    return Finding(part, True, f"{what}: {abs(errors.later_bias) / errors.scale:.0%} too {word} from step {errors.step} on.")


def observation_findings(policy: DreamerPolicy, audit: Audit, seen: OpenLoop) -> list[Finding]:
    """:return: decoder and prior, from the errors of observations"""
    findings = []
    truth = as_array_dict(seen.observations)
    for name, error in audit.reconstructions.items():
        key = name.removeprefix("obs/")
        space = as_space_dict(policy.observation_space)[key]
        limit = LARGEST_ERROR * no_knowledge_error(space, truth[key])
        is_fault = error >= limit > 0.0
        if limit == 0.0 or math.isnan(error):
            text = f"{name} does not change."
        elif is_fault:
            text = f"{name} is reconstructed no better than by its mean (error {error:.2f})."
        else:
            better = np.flatnonzero(~(audit.observations[name] < limit))
            n_steps = int(better[0]) if len(better) else len(audit.observations[name])
            text = f"{name}: error {error:.2f} where observed. Predicted better than by its mean for {n_steps} steps."
        findings.append(Finding("decoder", is_fault, text))
    share = audit.prior_share
    text = (
        "The posterior is always the same."
        if math.isnan(share)
        else f"It knows {max(share, 0.0):.0%} of what the posterior knows."
    )
    return [*findings, Finding("prior", share < LEAST_PRIOR_SHARE, text)]


def head_findings(audit: Audit) -> list[Finding]:
    """:return: reward head, continue head and critic"""
    heads = audit.heads
    ends = heads["continue"]._replace(later_bias=-heads["continue"].later_bias)
    ends_seen, n_steps = audit.ends[np.isfinite(audit.ends)], steps_foreseen(audit.ends)
    if not len(ends_seen):
        foreseen = "No episode terminated."
    elif n_steps:
        foreseen = f"The end of an episode is foreseen {n_steps} steps ahead."
    else:
        foreseen = f"The end of an episode is not foreseen: probability {ends_seen[0]:.2f} where it came."
    value = audit.calibrations["value"]
    return [
        bias_finding("reward", "Predicted rewards", heads["reward"], "high", "low"),
        bias_finding("continue", "Predicted frequency of ends", ends, "high", "low"),
        Finding("continue", False, foreseen),
        bias_finding("critic", "Values of predicted states", heads["value"], "high", "low"),
        Finding(
            "critic",
            False,
            f"Mean value {value.predicted.mean():.3g}, mean return of the replay buffer {value.seen.mean():.3g}.",
        ),
    ]


@th.no_grad()
def audit_world_model(model: "DreamerV3", n_sequences: int = 256, burn_in: int = 5, horizon: int = 15, seed: int = 0) -> Audit:
    """
    Compare what the model predicts without observations with what was seen. Sequences are drawn from the replay buffer; the
    first rows are observed, the others are predicted from the true actions. The model and its random numbers do not change.

    :param model: model with a replay buffer
    :param n_sequences: number of sequences
    :param burn_in: number of rows that are observed
    :param horizon: number of rows that are predicted
    :param seed: seed of the sequences and samples
    :return: errors by horizon step, calibration, and a verdict; ``print`` it
    :raises ValueError: if a number is below 1, or the replay buffer has no sequence of this length
    """
    if horizon < 1:
        raise ValueError(f"`horizon` must be at least 1, got {horizon}")
    policy, n_rows = model.policy, burn_in + horizon
    arguments: Any = dict(n_sequences=n_sequences, seed=seed)
    opened = model.predict_open_loop(burn_in=burn_in, horizon=horizon, **arguments)
    seen = model.predict_open_loop(burn_in=n_rows, horizon=0, **arguments)
    batch = model.replay_buffer.sample_sequences(
        n_sequences, n_rows, np.random.default_rng(seed), model._vec_normalize_env
    )  # the same sequences again
    assert opened.true_rewards is not None and opened.true_continues is not None
    is_valid = opened.is_valid[:, burn_in:]  # (B, H)
    rewards, continues = (part[:, burn_in:] for part in (opened.true_rewards, opened.true_continues))  # (B, H)
    pairs = {
        "reward": (opened.rewards[:, burn_in:], rewards, np.abs(rewards)),
        "continue": (opened.continues[:, burn_in:], continues, 1.0 - continues),
        "value": (opened.values[:, burn_in:], seen.values[:, burn_in:], np.abs(seen.values[:, burn_in:])),
    }  # predicted (B, H), seen (B, H), sizes (B, H)
    calibrations = {name: calibration(pairs[name][0][is_valid], pairs[name][1][is_valid]) for name in ("reward", "continue")}
    returns = seen_returns(batch, seen.values, model.gamma)  # (B, T)
    calibrations["value"] = calibration(seen.values.ravel(), returns.ravel())
    reconstructions = observation_errors(policy, seen._replace(burn_in=0))
    with policy.autocast():
        prior_share = share_known_by_prior(policy, batch, seed)
    audit = Audit(
        observation_errors(policy, opened),
        {name: finite_mean(errors) for name, errors in reconstructions.items()},
        {name: step_errors(a, b, is_valid, sizes, FALLBACK_SCALE[name]) for name, (a, b, sizes) in pairs.items()},
        calibrations,
        mean_where(1.0 - opened.continues[:, burn_in:], is_valid & (continues < 1.0)),
        prior_share,
        [],
    )
    return audit._replace(findings=observation_findings(policy, audit, seen) + head_findings(audit))
