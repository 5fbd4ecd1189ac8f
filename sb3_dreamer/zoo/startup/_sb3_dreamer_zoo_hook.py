"""
Makes ``rl_zoo3`` know DreamerV3. Python runs ``install`` when it starts, through ``sb3_dreamer_zoo.pth``.

Nothing is imported then. When, later, the program itself imports one of three modules of RL Zoo, our part is added to it;
if that fails, a warning says so and RL Zoo goes on without us. ``SB3_DREAMER_ZOO=0`` in the environment switches it off.

This file stands outside of the package, because importing anything inside would import torch.
"""

import sys

# Module of RL Zoo: the function of our plugin that is called with it, once it has been imported.
REGISTRATIONS = {
    "rl_zoo3.utils": "register_algorithm",
    "rl_zoo3.hyperparams_opt": "register_sampler",
    "rl_zoo3.exp_manager": "register_presets",
}


def register(module):
    """:param module: just imported; some loaders serve other modules than RL Zoo's three as well"""
    if module.__name__ not in REGISTRATIONS:
        return
    try:
        from importlib import import_module

        getattr(import_module("sb3_dreamer.zoo.plugin"), REGISTRATIONS[module.__name__])(module)
    except Exception as error:
        # No warning, which a program may have turned into an error.
        print(f"RL Zoo goes on without DreamerV3: {error!r}", file=sys.stderr)


class PostImportFinder:
    """A finder that finds nothing itself, but lets ``register`` run after the modules that others find."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """:return: what the other finders return, for our three names; else None"""
        if name not in REGISTRATIONS:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is cls else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                return with_registration(spec)
        return None


def with_registration(spec):
    """:return: the same spec, whose loader calls ``register`` after running the module"""
    run = getattr(spec.loader, "exec_module", None)
    if run is not None:

        def run_and_register(module):
            run(module)
            register(module)

        try:
            spec.loader.exec_module = run_and_register
        except AttributeError:  # a loader that cannot be changed: RL Zoo goes on without us
            pass
    return spec


def install():
    """Done once, unless switched off."""
    import os

    if os.environ.get("SB3_DREAMER_ZOO") != "0" and PostImportFinder not in sys.meta_path:
        sys.meta_path.insert(0, PostImportFinder)
