"""Lambda returns compared with an explicit sum; the return normaliser."""

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.returns import ReturnNormalizer, lambda_return


def slow_lambda_return(rewards, discounts, bootstrap, lam, is_last):
    """Weighted sum over n-step returns, one at a time, O(T^2)."""
    length = len(rewards)
    result = []
    for t in range(length - 1):
        total, weight, reward_sum, discount = 0.0, 1.0, 0.0, 1.0
        for n in range(1, length - t):
            k = t + n
            reward_sum += discount * rewards[k]
            discount *= discounts[k]
            trace = 0.0 if is_last[k] else lam
            ends = n == length - t - 1
            share = 1.0 if ends else 1.0 - trace
            total += weight * share * (reward_sum + discount * bootstrap[k])
            weight *= 0.0 if ends else trace
        result.append(total)
    return np.array(result)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_lambda_return_against_the_sum(lam):
    rng = np.random.default_rng(0)
    rewards, bootstrap = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    discounts, is_last = rng.uniform(0.5, 1.0, (5, 9)), rng.random((5, 9)) < 0.2
    discounts[2, 4] = 0.0
    ours = lambda_return(
        *(th.tensor(x) for x in (rewards, discounts, bootstrap)), return_lambda=lam, is_last=th.tensor(is_last)
    )
    for i in range(5):
        expected = slow_lambda_return(rewards[i], discounts[i], bootstrap[i], lam, is_last[i])
        np.testing.assert_allclose(ours[i], expected, rtol=1e-10)


def test_special_cases():
    rewards, discounts, values = th.randn(3, 6), th.rand(3, 6), th.randn(3, 6)
    one_step = lambda_return(rewards, discounts, values, return_lambda=0.0)
    assert th.allclose(one_step, rewards[:, 1:] + discounts[:, 1:] * values[:, 1:])
    monte_carlo = lambda_return(rewards, th.ones(3, 6), values, return_lambda=1.0)
    assert th.allclose(monte_carlo[:, 0], rewards[:, 1:].sum(1) + values[:, -1], atol=1e-5)


def test_ends_of_episodes_in_replay():
    """Terminal next: only its reward. Truncated next: reward plus discounted bootstrap. Nothing flows across either."""
    rewards, boot = th.tensor([[0.0, 1.0, 2.0, 3.0]]), th.tensor([[10.0, 20.0, 30.0, 40.0]])
    last = th.tensor([[False, True, False, False]])
    terminal = lambda_return(rewards, th.tensor([[0.9, 0.0, 0.9, 0.9]]), boot, return_lambda=0.95, is_last=last)
    truncated = lambda_return(rewards, th.full((1, 4), 0.9), boot, return_lambda=0.95, is_last=last)
    assert terminal[0, 0].item() == 1.0
    assert truncated[0, 0].item() == pytest.approx(1.0 + 0.9 * 20.0)
    assert terminal[0, 1].item() == truncated[0, 1].item()


def test_normalizer_of_other_percentiles_and_decay():
    normalizer = ReturnNormalizer(0.5, 0.25, 1.0)
    returns = th.linspace(0.0, 100.0, 101)
    for _ in range(2):
        normalizer.update(returns)
    assert (normalizer.low.item(), normalizer.high.item()) == (0.75 * 25.0, 0.75 * 100.0)
    assert normalizer.scale.item() == 0.75 * 75.0


def test_normalizer():
    normalizer = ReturnNormalizer()
    assert normalizer.scale == 1.0
    returns = th.linspace(0.0, 100.0, 101)
    normalizer.update(returns)
    # The averages start at 0, without bias correction.
    assert normalizer.low.item() == pytest.approx(0.05) and normalizer.high.item() == pytest.approx(0.95)
    assert normalizer.scale == 1.0  # small ranges are not scaled up
    for _ in range(2000):
        normalizer.update(returns)
    assert normalizer.scale.item() == pytest.approx(90.0, rel=1e-3)
    assert set(normalizer.state_dict()) == {"low", "high"}
