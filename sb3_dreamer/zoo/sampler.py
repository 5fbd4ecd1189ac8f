"""Hyperparameter sampler of DreamerV3 for ``rl_zoo3 train -optimize``."""

from typing import Any

import optuna


def sample_dreamerv3_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]  # noqa: ARG001
) -> dict[str, Any]:
    """
    Sample model size, training ratio, learning rate, entropy coefficient, batch length and horizon, in ranges for small tasks.

    :param trial: trial of optuna
    :param n_actions: not used
    :param n_envs: not used
    :param additional_args: not used
    :return: arguments of the constructor
    """
    return convert_dreamerv3_params(
        {
            "model_size": trial.suggest_categorical("model_size", ["micro", "mini", "XXS", "1m"]),
            "training_ratio_pow": trial.suggest_int("training_ratio_pow", 5, 10),
            "learning_rate": trial.suggest_float("learning_rate", 4e-5, 3e-3, log=True),
            "ent_coef": trial.suggest_float("ent_coef", 1e-4, 1e-1, log=True),
            "batch_length_pow": trial.suggest_int("batch_length_pow", 3, 6),
            "imagination_horizon": trial.suggest_int("imagination_horizon", 5, 20),
        }
    )


def convert_dreamerv3_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial
    :return: arguments of the constructor, with powers of two evaluated, and no dimensions other than the sampled size
    """
    params = sampled_params.copy()
    for name in ("training_ratio", "batch_length"):
        params[name] = 2 ** params.pop(f"{name}_pow")
    return {"policy_kwargs": {}, **params}
