"""Find the YAML files for RL Zoo, and check the keys of a preset."""

import difflib
import inspect
from pathlib import Path
from typing import Any

from sb3_dreamer.dreamerv3 import DreamerV3
from sb3_dreamer.dreamerv3.counterparts import COUNTERPARTS, did_you_mean
from sb3_dreamer.presets import DEFAULT, ZOO_KEYS, hyperparams_dir

NEEDED = ("policy", "n_timesteps")


def find_config(config: str | None) -> str:
    """
    :param config: value of ``--conf-file``: a file or module of the user, one of our files such as ``sizes/12m.yml``, or None
    :return: one of our files if ``config`` is None, or if it names one of ours and no file of the user; otherwise ``config``
    :raises FileNotFoundError: if ``config`` names a YAML file that does not exist
    """
    folder = hyperparams_dir()
    ours = folder / (config or DEFAULT)
    if config is None or (not Path(config).exists() and ours.is_file()):
        return str(ours)
    if config.endswith((".yml", ".yaml")) and not Path(config).is_file():
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yml"))
        close = difflib.get_close_matches(config, names, n=3)
        raise FileNotFoundError(
            f"`--conf-file` must name a file, or one of the presets of sb3_dreamer, got {config!r}. "
            f"{'Similar' if close else 'The'} presets: {', '.join(close or names)}"
        )
    return config


def check_keys(hyperparams: dict[str, Any], source: str) -> None:
    """
    :param hyperparams: a preset as RL Zoo has read it
    :param source: where it comes from, for the message
    :raises ValueError: if a key that RL Zoo needs is missing, or a key belongs neither to RL Zoo nor to DreamerV3
    """
    arguments = list(inspect.signature(DreamerV3).parameters)
    known = [*ZOO_KEYS, *(name for name in arguments if name not in ZOO_KEYS and not name.startswith("_"))]
    for key in hyperparams:
        if key not in known and key not in COUNTERPARTS:  # DreamerV3 names the counterparts
            hint = did_you_mean(key, known) or f"DreamerV3 and RL Zoo have {', '.join(known)}"
            raise ValueError(f"The key `{key}` of the preset in {source} is not known. {hint.rstrip()}")
    for key in NEEDED:
        if key not in hyperparams:
            raise ValueError(f"The preset in {source} needs the key `{key}`")
