"""Registration with RL Zoo's modules, either when each of them is imported (see ``startup/``) or by ``register_all``."""

import functools
import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from sb3_dreamer.common.distributed.launch import is_launched
from sb3_dreamer.dreamerv3 import DreamerV3
from sb3_dreamer.zoo.presets import check_keys, find_config
from sb3_dreamer.zoo.ranks import adapt_to_rank
from sb3_dreamer.zoo.resume import accept_folder, add_callback, resume, stand_ins

NAME = "dreamerv3"


def register_algorithm(utils: ModuleType) -> None:
    """:param utils: ``rl_zoo3.utils``, which holds the algorithms of all commands"""
    utils.ALGOS.setdefault(NAME, DreamerV3)


def register_sampler(hyperparams_opt: ModuleType) -> None:
    """:param hyperparams_opt: ``rl_zoo3.hyperparams_opt``"""
    from sb3_dreamer.zoo.sampler import convert_dreamerv3_params, sample_dreamerv3_params

    hyperparams_opt.HYPERPARAMS_SAMPLER.setdefault(NAME, sample_dreamerv3_params)
    hyperparams_opt.HYPERPARAMS_CONVERTER.setdefault(NAME, convert_dreamerv3_params)


def register_presets(exp_manager: ModuleType) -> None:
    """
    Make ``ExperimentManager`` find our YAML files for DreamerV3. RL Zoo would search for them in its own package.

    :param exp_manager: ``rl_zoo3.exp_manager``
    """
    manager = exp_manager.ExperimentManager
    original = manager.__init__
    if hasattr(original, "finds_dreamerv3"):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        if bound.arguments["algo"] == NAME:
            bound.arguments["config"] = find_config(bound.arguments.get("config"))
            if is_launched():
                bound.apply_defaults()
                adapt_to_rank(bound.arguments)
        original(*bound.args, **bound.kwargs)

    init.finds_dreamerv3 = True  # type: ignore[attr-defined]
    manager.__init__ = init
    read = manager.read_hyperparameters

    def read_and_check(self: Any) -> Any:
        hyperparams, saved = read(self)
        if self.algo == NAME:
            check_keys(hyperparams, f"{self.config} (with --hyperparams)" if self.custom_hyperparams else self.config)
        return hyperparams, saved

    manager.read_hyperparameters = read_and_check
    register_resume(manager)
    if is_launched():
        learn = manager.learn

        def learn_on_all_ranks(self: Any, model: Any) -> None:
            if self.algo == NAME:
                # Each rank saves its replay buffer there. Shared now, because ranks must not wait after an interruption.
                self.save_path = model._ranks.share(self.save_path)
            learn(self, model)

        manager.learn = learn_on_all_ranks


def register_resume(manager: Any) -> None:
    """
    Make ``train -i`` of DreamerV3 continue a run: counters, schedules and TensorBoard log go on, and a folder with checkpoints
    is accepted.

    :param manager: ``ExperimentManager``
    """
    load, learn, create_callbacks = manager._load_pretrained_agent, manager.learn, manager.create_callbacks

    def load_or_resume(self: Any, hyperparams: dict[str, Any], env: Any) -> Any:
        return (resume if self.trained_agent in stand_ins else load)(self, hyperparams, env)

    def continue_learning(self: Any, model: Any) -> None:
        if self.algo == NAME and self.continue_training:
            model.learn = functools.partial(model.learn, reset_num_timesteps=False)
        try:
            learn(self, model)
        finally:
            vars(model).pop("learn", None)

    def create_all_callbacks(self: Any) -> None:
        create_callbacks(self)
        if self.algo == NAME:
            add_callback(self)

    manager._load_pretrained_agent = load_or_resume
    manager.learn = continue_learning
    manager.create_callbacks = create_all_callbacks
    accept_folder(sys.argv)


def register_all() -> None:
    """Import RL Zoo's modules and register DreamerV3."""
    register_algorithm(import_module("rl_zoo3.utils"))
    register_sampler(import_module("rl_zoo3.hyperparams_opt"))
    register_presets(import_module("rl_zoo3.exp_manager"))
