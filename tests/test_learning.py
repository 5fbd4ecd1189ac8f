"""It learns. One check in the fast suite that cannot pass by luck; longer ones are marked slow."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV3


def best_evaluation(steps: int, seed: int, stop_at: float) -> float:
    """Best mean return over 20 episodes of CartPole-v1, evaluated every 250 steps."""
    th.set_num_threads(1)
    model = DreamerV3(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=4, seed=seed),
        learning_rate=1e-3,
        lr_warmup_steps=100,
        learning_starts=0,
        batch_size=16,
        batch_length=16,
        training_ratio=128,
        gamma=0.99,
        ent_coef=1e-2,
        imagine_last=4,
        policy_kwargs=dict(deter=128, hidden=64, stoch=8, classes=8, units=64, blocks=4),
        seed=seed,
        device="cpu",
    )
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", n_envs=10, seed=1000),
        eval_freq=63,
        n_eval_episodes=20,
        callback_on_new_best=StopTrainingOnRewardThreshold(stop_at, verbose=0),
        verbose=0,
    )
    model.learn(steps, callback=evaluation, log_interval=None)
    return float(evaluation.best_mean_reward)


def test_cartpole_improves():
    """
    Six times the random agent's 20 within 1,500 steps. A policy that does not learn from its dreams scores at most what a
    constant or random one does: 10 to 30 on average over 20 episodes, never 120.
    """
    assert best_evaluation(1500, seed=0, stop_at=120.0) >= 120.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_is_solved(seed):
    assert best_evaluation(4000, seed, stop_at=475.0) >= 475.0


def test_random_agent_stays_low():
    """The bar of the check above means something: without training no evaluation comes near it."""
    rng = np.random.default_rng(0)
    env = make_vec_env("CartPole-v1", n_envs=1, seed=0)
    env.reset()
    lengths, length = [], 0
    while len(lengths) < 400:
        _, _, dones, _ = env.step(rng.integers(0, 2, 1))
        length += 1
        if dones[0]:
            lengths.append(length)
            length = 0
    means = np.array(lengths).reshape(20, 20).mean(1)
    assert means.max() < 40
