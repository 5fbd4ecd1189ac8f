"""Learning with the settings of the example and with presets. One fast check; longer ones are marked slow."""

from pathlib import Path

import pytest
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from examples.cartpole import make_model
from sb3_dreamer import DreamerV3
from sb3_dreamer.presets import hyperparams_dir


class Until(BaseCallback):
    """Stops training after so many steps, without changing the schedules of the run."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


def best_evaluation(log_dir: Path, steps: int, seed: int, stop_at: float) -> float:
    """Best mean return over 20 episodes of CartPole-v1, evaluated every 250 steps, in the first steps of a run of 10,000."""
    th.set_num_threads(1)
    model = make_model(log_dir, seed)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", n_envs=10, seed=1000),
        eval_freq=63,
        n_eval_episodes=20,
        callback_on_new_best=StopTrainingOnRewardThreshold(stop_at, verbose=0),
        verbose=0,
    )
    model.learn(10_000, callback=[evaluation, Until(steps)], log_interval=None)
    return float(evaluation.best_mean_reward)


def test_cartpole_improves(tmp_path):
    """
    Greedy return of 400 within 1,500 steps. Chance is not enough: of a hundred untrained models of this size the best
    scored 112 in greedy evaluation.
    """
    assert best_evaluation(tmp_path, 1500, seed=3, stop_at=400.0) >= 400.0


def test_untrained_models_stay_low():
    """The bar of the previous test is not reached by chance."""
    env = make_vec_env("CartPole-v1", n_envs=5, seed=0)
    returns = []
    for seed in range(8):
        model = DreamerV3("MlpPolicy", env, seed=seed, device="cpu", model_size="mini")
        with th.no_grad():
            model.policy.actor.output.weight.mul_(100.0)  # almost uniform at initialisation: make it more deterministic
        returns.append(evaluate_policy(model, env, n_eval_episodes=5, deterministic=True)[0])
    assert max(returns) < 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cartpole_is_solved(seed, tmp_path):
    assert best_evaluation(tmp_path, 4000, seed, stop_at=475.0) >= 475.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tmaze_is_remembered(seed):
    """An agent without memory scores 0. The preset is that of N=4."""
    th.set_num_threads(1)
    preset = yaml.safe_load((hyperparams_dir() / "dreamerv3.yml").read_text())["sb3_dreamer/TMaze-v0"]
    arguments = {name: value for name, value in preset.items() if name not in ("policy", "n_envs", "n_timesteps")}
    make = dict(env_id="sb3_dreamer/TMaze-v0", env_kwargs=dict(length=5))
    model = DreamerV3(
        "MlpPolicy", make_vec_env(n_envs=preset["n_envs"], seed=seed, **make), seed=seed, device="cpu", **arguments
    )
    evaluation = EvalCallback(
        make_vec_env(n_envs=10, seed=1000, **make),
        eval_freq=63,
        n_eval_episodes=100,
        callback_on_new_best=StopTrainingOnRewardThreshold(0.95, verbose=0),
        verbose=0,
    )
    model.learn(preset["n_timesteps"], callback=evaluation, log_interval=None)
    assert evaluation.best_mean_reward >= 0.95
