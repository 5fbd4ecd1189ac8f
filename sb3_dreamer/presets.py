"""The presets of the YAML files as keyword arguments."""

import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

PACKAGE = Path(__file__).parent
DEFAULT = "dreamerv3.yml"
# Keys of a preset that RL Zoo takes for itself, and those of them that change what the agent observes or is rewarded for.
ENV_KEYS = ("env_wrapper", "vec_env_wrapper", "frame_stack", "normalize", "env_kwargs")
ZOO_KEYS = ("policy", "n_envs", "n_timesteps", *ENV_KEYS, "monitor_kwargs", "callback")


class Preset(dict[str, Any]):
    """
    Keyword arguments of :class:`~sb3_dreamer.dreamerv3.dreamerv3.DreamerV3`.

    :param kwargs: keyword arguments
    :param zoo: the keys that RL Zoo takes for itself
    """

    def __init__(self, kwargs: dict[str, Any], zoo: dict[str, Any]):
        super().__init__(kwargs)
        self.zoo = zoo


def hyperparams_dir() -> Path:
    """
    :return: the folder with ``dreamerv3.yml``: inside the package once installed, at the top of a checkout
    :raises FileNotFoundError: if the installation is broken
    """
    for folder in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams"):
        if (folder / DEFAULT).is_file():
            return folder
    raise FileNotFoundError(f"`{DEFAULT}` is neither in {PACKAGE} nor next to it: install sb3_dreamer again")


def read_preset(name: str) -> dict[str, Any]:
    """
    :param name: as for :func:`preset`
    :return: all keys of the preset
    :raises ValueError: if there is no such preset
    """
    import difflib

    import yaml  # not when the package is imported

    folder = hyperparams_dir()
    name = name.removesuffix(".yml")
    file = folder / f"{name}.yml"
    if file.is_file() and file.name != DEFAULT:
        return yaml.safe_load(file.read_text())["default"]
    presets = {key: value for key, value in yaml.safe_load((folder / DEFAULT).read_text()).items() if key[0] != "."}
    if name.startswith("ALE/") and name not in presets:
        name = "atari"  # as RL Zoo does
    if name not in presets:
        files = [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yml") if path.name != DEFAULT]
        close = difflib.get_close_matches(name, [*files, *presets], n=3, cutoff=0.4)
        raise ValueError(
            f"`name` must be a preset, got {name!r}; similar ones: {', '.join(close or sorted([*files, *presets]))}. For "
            "other environments: 'small' on a CPU, or no preset"
        )
    return presets[name]


def preset(name: str) -> Preset:
    """
    The settings of a preset, for use without RL Zoo:

    .. code-block:: python

        model = DreamerV3("MlpPolicy", env, **preset("small"))

    RL Zoo takes some keys of a preset for itself: ``policy``, ``n_envs``, ``n_timesteps``, ``env_wrapper``,
    ``vec_env_wrapper``, ``frame_stack``, ``normalize``, ``env_kwargs``, ``monitor_kwargs`` and ``callback``. They are not
    arguments of the algorithm, so they are not among the items. They are in the attribute ``zoo``:
    ``make_vec_env(id, n_envs=preset("small").zoo["n_envs"])``. If the environment must be wrapped, a warning says how.

    :param name: of a file (``"small"``, ``"sizes/12m"``, also with ``.yml``), or of a preset in ``dreamerv3.yml``: the id of
        an environment, or ``"atari"``, which all ids ``"ALE/..."`` have
    :return: keyword arguments of the algorithm
    :raises ValueError: if there is no such preset
    """
    found = read_preset(name)
    zoo = {key: found[key] for key in ZOO_KEYS if key in found}
    kwargs = {key: to_argument(value) for key, value in found.items() if key not in zoo}
    around_env = {key: zoo[key] for key in ENV_KEYS if key in zoo}
    if around_env:
        warnings.warn(f"The preset {name!r} is for a wrapped environment, which you must make yourself: {around_env}")
    return Preset(kwargs, zoo)


def to_argument(value: Any) -> Any:
    """:return: the value as an argument; RL Zoo writes ``lin_1e-3`` for a rate that falls linearly to 0"""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value
