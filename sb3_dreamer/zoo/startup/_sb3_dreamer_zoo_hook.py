"""
Registers DreamerV3 with ``rl_zoo3``. Python runs ``install`` when it starts, through ``sb3_dreamer_zoo.pth``.

This does not import anything yet. When the program later imports one of three modules of RL Zoo, DreamerV3 is registered with
it. If that fails, a message is printed and RL Zoo continues without DreamerV3. ``SB3_DREAMER_ZOO=0`` in the environment
switches it off.

This file is outside of the package, because importing the package would import torch.
"""

import sys

# Modules of RL Zoo, and the function of our plugin to call with each after its import.
REGISTRATIONS = {
    "rl_zoo3.utils": "register_algorithm",
    "rl_zoo3.hyperparams_opt": "register_sampler",
    "rl_zoo3.exp_manager": "register_presets",
}


def register(module):
    """:param module: module that has just been imported; some loaders also load modules other than these three"""
    if module.__name__ not in REGISTRATIONS:
        return
    try:
        from importlib import import_module

        getattr(import_module("sb3_dreamer.zoo.plugin"), REGISTRATIONS[module.__name__])(module)
    except Exception as error:
        # Not a warning, because programs may turn warnings into errors.
        print(f"RL Zoo continues without DreamerV3: {error!r}", file=sys.stderr)


class PostImportFinder:
    """A finder that delegates to the other finders, and calls ``register`` after the import of RL Zoo's modules."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """:return: the spec of another finder for the three modules, otherwise None"""
        if name not in REGISTRATIONS:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is cls else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                return with_registration(spec)
        return None


def with_registration(spec):
    """:return: the same spec, with a loader that calls ``register`` after running the module"""
    run = getattr(spec.loader, "exec_module", None)
    if run is not None:

        def run_and_register(module):
            run(module)
            register(module)

        try:
            spec.loader.exec_module = run_and_register
        except AttributeError:  # the loader cannot be changed: RL Zoo continues without DreamerV3
            pass
    return spec


def install():
    """Install the finder once, unless it is switched off."""
    import os

    if os.environ.get("SB3_DREAMER_ZOO") != "0" and PostImportFinder not in sys.meta_path:
        sys.meta_path.insert(0, PostImportFinder)
