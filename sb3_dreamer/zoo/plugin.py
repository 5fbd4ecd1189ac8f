"""What RL Zoo's modules get from us, each right after it has been imported (see ``startup/``), or by ``register_all``."""

import functools
import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

from sb3_dreamer.common.distributed.launch import is_launched
from sb3_dreamer.dreamerv3 import DreamerV3
from sb3_dreamer.zoo.presets import find_config
from sb3_dreamer.zoo.ranks import adapt_to_rank

NAME = "dreamerv3"


def register_algorithm(utils: ModuleType) -> None:
    """:param utils: ``rl_zoo3.utils``, whose table of algorithms all commands read"""
    utils.ALGOS.setdefault(NAME, DreamerV3)


def register_sampler(hyperparams_opt: ModuleType) -> None:
    """:param hyperparams_opt: ``rl_zoo3.hyperparams_opt``"""
    from sb3_dreamer.zoo.sampler import convert_dreamerv3_params, sample_dreamerv3_params

    hyperparams_opt.HYPERPARAMS_SAMPLER.setdefault(NAME, sample_dreamerv3_params)
    hyperparams_opt.HYPERPARAMS_CONVERTER.setdefault(NAME, convert_dreamerv3_params)


def register_presets(exp_manager: ModuleType) -> None:
    """
    Let ``ExperimentManager`` find our YAML files for our algorithm, which RL Zoo would look for in its own package.

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
    if is_launched():
        learn = manager.learn

        def learn_beside_main_rank(self: Any, model: Any) -> None:
            if self.algo == NAME:
                # Each rank saves its own replay there. Agreed on now: after an interruption nobody may wait for another.
                self.save_path = model._ranks.share(self.save_path)
            learn(self, model)

        manager.learn = learn_beside_main_rank


def register_all() -> None:
    """Import RL Zoo and register everything, with or without the start-up files."""
    register_algorithm(import_module("rl_zoo3.utils"))
    register_sampler(import_module("rl_zoo3.hyperparams_opt"))
    register_presets(import_module("rl_zoo3.exp_manager"))
