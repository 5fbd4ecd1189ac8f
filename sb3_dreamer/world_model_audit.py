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
from sb3_dreamer.dreamerv3.networks import UnitPixels
from sb3_dreamer.dreamerv3.policies import DreamerPolicy
from sb3_dreamer.dreamerv3.predictions import OpenLoop

if TYPE_CHECKING:
    from sb3_dreamer.dreamerv3 import DreamerV3

# A bias is a fault if it is a larger share of its scale and has more standard errors.
LARGEST_BIAS, LEAST_SIGNIFICANCE = 0.2, 4.0
# A standard error from fewer groups of sequences is not trusted.
LEAST_GROUPS = 10
# A prediction in observed states is a fault from this error on, relative to one that knows only the mean.
LARGEST_ERROR = 0.9
# The prior is a fault below this share of what the posterior knows.
LEAST_PRIOR_SHARE = 0.1
# Least scale of a bias. Ends: with less than one in 40 rows, a bias below 0.005 (a fifth of it) is no fault.
LEAST_SCALE = {"reward": 0.0, "continue": 0.025, "value": 0.0}
N_QUANTILES = 10


class StepErrors(NamedTuple):
    """
    Predictions against what was seen, by horizon step 1 to H: mean difference and mean absolute difference (H,).

    ``later_bias`` is the mean difference from ``step`` on, ``significance`` its number of standard errors, ``scale`` the size
    to which it is compared, and ``seen`` the mean size of what was seen from this step on. If ``is_fault``, the bias from
    this step on is large and not by chance; otherwise ``step`` is 1.
    """

    bias: np.ndarray
    error: np.ndarray
    is_fault: bool
    step: int
    later_bias: float
    significance: float
    scale: float
    seen: float


class Calibration(NamedTuple):
    """
    Rows sorted by what was predicted, in groups of equal size: mean prediction and mean of what was seen, up to (10,) each.
    They are equal for a calibrated head.
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
    - ``reconstructions``: the same in observed states, and the error of ``reward`` and ``continue`` there; a number each,
      NaN if the truth does not change
    - ``heads``: ``reward``, ``continue`` (probability that the episode continues), both against the replay buffer, and
      ``value``: the critic in the predicted state against the critic in the state that has seen the observation
    - ``calibrations``: of ``reward`` and ``continue`` in predicted states, and of ``value`` in observed states against the
      returns of the replay buffer, see :func:`seen_returns`. Older policies collected them
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
    """:return: whether this key is an image; a decoder of your own may predict it, too"""
    return key in policy.image_layouts


@th.no_grad()
def pixels_of(policy: DreamerPolicy, key: str, observations: np.ndarray) -> np.ndarray:
    """
    :param policy: policy
    :param key: of an image, see :func:`has_pixels`
    :param observations: (..., \\*space.shape)
    :return: pixels in [0, 1], channels first (..., C, h, w)
    """
    space = as_space_dict(policy.observation_space)[key]
    assert isinstance(space, spaces.Box)
    lead = observations.shape[: observations.ndim - len(space.shape)]
    flat = th.as_tensor(observations.reshape(-1, *space.shape))
    pixels = UnitPixels(space, policy.image_layouts[key])(flat).numpy()  # (N, C, h, w)
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


def step_errors(
    predicted: np.ndarray,
    seen: np.ndarray,
    is_valid: np.ndarray,
    groups: np.ndarray,
    sizes: np.ndarray,
    least_scale: float = 0.0,
) -> StepErrors:
    """
    :param predicted: (B, H)
    :param seen: (B, H)
    :param is_valid: (B, H)
    :param groups: number of the group of each sequence (B,). Sequences that may overlap are in the same group, and standard
        errors count groups
    :param sizes: their mean is the scale of a bias (B, H); 1 if they are 0
    :param least_scale: a smaller scale is replaced by it
    :return: errors by horizon step
    """
    difference = predicted.astype(np.float64) - seen  # (B, H)
    bias, error = mean_where(difference, is_valid), mean_where(np.abs(difference), is_valid)  # (H,), (H,)

    def later(values: np.ndarray) -> np.ndarray:
        by_group = np.zeros((groups.max() + 1, values.shape[1]))
        np.add.at(by_group, groups, values * is_valid)
        return by_group[:, ::-1].cumsum(1)[:, ::-1]  # sums from each step on (groups, H)

    sums, counts = later(difference), later(np.ones_like(difference))
    total, n_groups = np.maximum(counts.sum(0), 1), (counts > 0).sum(0)  # (H,), (H,)
    later_bias, later_size = sums.sum(0) / total, later(sizes).sum(0) / total  # (H,), (H,)
    scale = np.maximum(later_size, least_scale)  # (H,)
    scale = np.where(scale > 0, scale, 1.0)
    variance = ((sums - later_bias * counts) ** 2).sum(0) * n_groups / np.maximum(n_groups - 1, 1)  # (H,)
    significance = np.abs(later_bias) / np.maximum(np.sqrt(variance) / total, 1e-9)  # (H,)
    significance = np.where(n_groups >= LEAST_GROUPS, significance, 0.0)
    # The bias begins at a step that has it itself.
    is_large = np.minimum(np.abs(later_bias), np.sign(later_bias) * np.nan_to_num(bias)) > LARGEST_BIAS * scale  # (H,)
    is_fault = is_large & (significance > LEAST_SIGNIFICANCE)  # (H,)
    step = int(np.where(is_fault, significance, 0.0).argmax())  # 0 if there is no fault
    while step > 0 and is_fault[step - 1]:
        step -= 1
    numbers = (float(part[step]) for part in (later_bias, significance, scale, later_size))
    return StepErrors(bias, error, bool(is_fault[step]), step + 1, *numbers)


def calibration(predicted: np.ndarray, seen: np.ndarray, weight: np.ndarray | None = None) -> Calibration:
    """
    :param predicted: (n,)
    :param seen: (n,)
    :param weight: share of what was seen that does not stem from the prediction itself (n,); None: all of it
    :return: means of up to 10 groups of equal size
    """
    weight = np.ones_like(predicted) if weight is None else weight
    order = np.argsort(predicted, kind="stable")
    groups = [group for group in np.array_split(order, N_QUANTILES) if weight[group].sum() > 0]
    means = np.array([predicted[group].mean() for group in groups])
    biases = [(predicted[group] - seen[group]).sum() / weight[group].sum() for group in groups]
    return Calibration(means, means - np.array(biases))


def seen_returns(batch: SequenceBatch, values: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Discounted sums of the rewards after each row. Where a window or a truncated episode ends, the value stands for what
    follows. If all values are too high by b, they are above these sums by b times the second result.

    :param batch: windows of the replay buffer
    :param values: critic's values in the observed states (B, T)
    :param gamma: discount factor
    :return: these sums, and the share of each that does not stem from a value; 0 in the last row of an episode. (B, T) each
    """
    rewards, is_last, is_terminal = (part.cpu().numpy() for part in (batch.rewards, batch.is_last, batch.is_terminal))
    returns, from_value = values.astype(np.float64), np.ones(values.shape)  # (B, T)
    for t in reversed(range(rewards.shape[1] - 1)):
        discount = gamma * (1.0 - is_terminal[:, t + 1])  # (B,)
        returns[:, t] = np.where(is_last[:, t], returns[:, t], rewards[:, t + 1] + discount * returns[:, t + 1])
        from_value[:, t] = np.where(is_last[:, t], 1.0, discount * from_value[:, t + 1])
    return returns, 1.0 - from_value


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


def groups_of(batch: SequenceBatch) -> np.ndarray:
    """:return: number of the group of each window (B,): windows that start in the same stretch of T rows of an environment"""
    steps, envs = batch.indices
    stretches = np.stack([envs, steps[:, 0] // steps.shape[1]], axis=1)  # (B, 2)
    return np.unique(stretches, axis=0, return_inverse=True)[1].reshape(-1)


def errors_where_observed(policy: DreamerPolicy, seen: OpenLoop) -> dict[str, float]:
    """:return: see ``reconstructions`` of :class:`Audit`"""
    errors = observation_errors(policy, seen._replace(burn_in=0))
    for name, truth, predicted in (
        ("reward", seen.true_rewards, seen.rewards),
        ("continue", seen.true_continues, seen.continues),
    ):
        assert truth is not None
        errors[name] = relative_error(truth, predicted, 0, seen.is_valid)
    return {name: finite_mean(values) for name, values in errors.items()}


def errors_of_heads(opened: OpenLoop, seen: OpenLoop, groups: np.ndarray) -> dict[str, StepErrors]:
    """:return: see ``heads`` of :class:`Audit`"""
    assert opened.true_rewards is not None and opened.true_continues is not None
    rewards, continues = opened.true_rewards, opened.true_continues  # (B, T), (B, T)
    # Values of terminal states are not trained: nothing comes after them.
    pairs = {
        "reward": (opened.rewards, rewards, np.abs(rewards), opened.is_valid),
        "continue": (opened.continues, continues, 1.0 - continues, opened.is_valid),
        "value": (opened.values, seen.values, np.abs(seen.values), opened.is_valid & (continues > 0)),
    }  # predicted, seen, sizes, validity: (B, T) each
    errors = {}
    for name, arrays in pairs.items():
        predicted, truth, sizes, is_valid = (array[:, opened.burn_in :] for array in arrays)  # (B, H) each
        errors[name] = step_errors(predicted, truth, is_valid, groups, sizes, LEAST_SCALE[name])
    return errors


def calibrations_of_heads(opened: OpenLoop, seen: OpenLoop, returns: np.ndarray, weight: np.ndarray) -> dict[str, Calibration]:
    """
    :param opened: open-loop predictions
    :param seen: predictions in the observed states
    :param returns: from :func:`seen_returns` (B, T)
    :param weight: from :func:`seen_returns` (B, T)
    :return: see ``calibrations`` of :class:`Audit`
    """
    assert opened.true_rewards is not None and opened.true_continues is not None
    is_predicted = opened.is_valid.copy()
    is_predicted[:, : opened.burn_in] = False
    return {
        "reward": calibration(opened.rewards[is_predicted], opened.true_rewards[is_predicted]),
        "continue": calibration(opened.continues[is_predicted], opened.true_continues[is_predicted]),
        "value": calibration(seen.values[weight > 0], returns[weight > 0], weight[weight > 0]),
    }


# ---- the verdict ----


def no_knowledge_error(space: spaces.Space, truth: np.ndarray) -> float:
    """:return: error of :func:`observation_errors` of a model that knows only the mean, or only the most frequent class"""
    if isinstance(space, spaces.Box):
        return 1.0
    columns = truth.reshape(truth.shape[0] * truth.shape[1], -1).T  # (n, B * T)
    return float(np.mean([1.0 - np.unique(column, return_counts=True)[1].max() / len(column) for column in columns]))


def steps_until(is_wrong: np.ndarray, values: np.ndarray) -> int:
    """
    :param is_wrong: by horizon step (H,)
    :param values: NaN where nothing was measured (H,)
    :return: the last measured step before the first wrong one, counted from 1; 0 if there is none
    """
    end = int(is_wrong.argmax()) if is_wrong.any() else len(values)
    return int(np.flatnonzero(np.isfinite(values[:end])).max(initial=-1) + 1)


def steps_foreseen(ends: np.ndarray) -> int:
    """:return: number of steps that an end is foreseen with a probability of at least 1/2"""
    return steps_until(ends < 0.5, ends)


def in_steps(n: int) -> str:
    """:return: the number with its unit"""
    return f"{n} step" if n == 1 else f"{n} steps"


def bias_finding(part: str, what: str, errors: StepErrors) -> Finding:
    """:return: how large the bias is, and whether it is a fault"""
    size = f"{what}: {abs(errors.later_bias) / errors.scale:.0%} too {'high' if errors.later_bias > 0 else 'low'}"
    if errors.is_fault:
        return Finding(part, True, f"{size} from step {errors.step} on.")
    return Finding(part, False, f"{size} on average ({errors.significance:.1f} standard errors).")


def observation_findings(policy: DreamerPolicy, audit: Audit, seen: OpenLoop) -> list[Finding]:
    """:return: decoder and prior, from the errors of observations"""
    findings = []
    truth = as_array_dict(seen.observations)
    for name, errors in audit.observations.items():
        key, error = name.removeprefix("obs/"), audit.reconstructions[name]
        known = "mean" if isinstance(as_space_dict(policy.observation_space)[key], spaces.Box) else "most frequent class"
        limit = LARGEST_ERROR * no_knowledge_error(as_space_dict(policy.observation_space)[key], truth[key])
        is_fault = error >= limit > 0.0
        if limit == 0.0 or math.isnan(error):
            text = f"{name} does not change."
        elif is_fault:
            text = f"{name} is reconstructed no better than by its {known} (error {error:.2f})."
        else:
            n_steps = in_steps(steps_until(errors >= limit, errors))
            text = f"{name}: error {error:.2f} where observed. Predicted better than by its {known} for {n_steps}."
        findings.append(Finding("decoder", is_fault, text))
    share, is_constant = audit.prior_share, all(one.text.endswith("does not change.") for one in findings)
    if math.isnan(share):
        return [*findings, Finding("prior", not is_constant, "The posterior is always the same.")]
    text = f"The prior knows {max(share, 0.0):.0%} of what the posterior knows."
    return [*findings, Finding("prior", share < LEAST_PRIOR_SHARE, text)]


def head_findings(audit: Audit) -> list[Finding]:
    """:return: reward head, continue head and critic"""
    findings = []
    for part, what in (("reward", "Rewards"), ("continue", "Ends of episodes")):
        error = audit.reconstructions[part]
        is_fault = error >= LARGEST_ERROR  # False if NaN
        text = f"{what} do not differ." if math.isnan(error) else f"{what}: error {error:.2f} where observed."
        text = f"{what} are known no better than by their mean where observed (error {error:.2f})." if is_fault else text
        findings.append(Finding(part, is_fault, text))
    reward, ends = audit.heads["reward"], audit.heads["continue"]
    findings.insert(1, bias_finding("reward", "Predicted rewards", reward))
    frequency = (
        f"Ends predicted in {ends.seen - ends.later_bias:.1%} of the rows from step {ends.step} on, seen in {ends.seen:.1%}."
    )
    findings.append(Finding("continue", ends.is_fault, frequency))
    if np.isfinite(audit.ends).any():
        n_steps, first = steps_foreseen(audit.ends), audit.ends[np.isfinite(audit.ends)][0]
        foreseen = f"The end of an episode is foreseen {in_steps(n_steps)} ahead" if n_steps else "No end is foreseen"
        findings.append(Finding("continue", False, f"{foreseen} (probability {first:.2f} at the first step)."))
    findings.append(bias_finding("critic", "Values of predicted states", audit.heads["value"]))
    value = audit.calibrations["value"]
    text = f"Mean value {value.predicted.mean():.3g}, mean return of the replay buffer {value.seen.mean():.3g}."
    return [*findings, Finding("critic", False, text)]


@th.no_grad()
def audit_world_model(model: "DreamerV3", n_sequences: int = 128, burn_in: int = 5, horizon: int = 15, seed: int = 0) -> Audit:
    """
    Compare what the model predicts without observations with what was seen. Sequences are drawn from the replay buffer; the
    first rows are observed, the others are predicted from the true actions. The model and its random numbers do not change.

    :param model: model with a replay buffer
    :param n_sequences: number of sequences
    :param burn_in: number of rows that are observed
    :param horizon: number of rows that are predicted
    :param seed: seed of the sequences and samples
    :return: errors by horizon step, calibration, and a verdict; ``print`` it
    :raises ValueError: if a number is below 1, the replay buffer has no sequence of this length, or the model reconstructs no
        observation
    """
    if horizon < 1:
        raise ValueError(f"`horizon` must be at least 1, got {horizon}")
    policy, n_rows = model.policy, burn_in + horizon
    arguments: Any = dict(n_sequences=n_sequences, seed=seed)
    opened = model.predict_open_loop(burn_in=burn_in, horizon=horizon, **arguments)
    seen = model.predict_open_loop(burn_in=n_rows, horizon=0, **arguments)
    batch = model.replayed_sequences(n_sequences, n_rows, seed)
    assert opened.true_rewards is not None and opened.true_continues is not None
    with policy.autocast():
        prior_share = share_known_by_prior(policy, batch, seed)
    ends = opened.is_valid & (opened.true_continues == 0.0)  # (B, T)
    audit = Audit(
        observation_errors(policy, opened),
        errors_where_observed(policy, seen),
        errors_of_heads(opened, seen, groups_of(batch)),
        calibrations_of_heads(opened, seen, *seen_returns(batch, seen.values, model.gamma)),
        mean_where(1.0 - opened.continues, ends)[burn_in:],
        prior_share,
        [],
    )
    return audit._replace(findings=observation_findings(policy, audit, seen) + head_findings(audit))
