"""Find the YAML files for RL Zoo."""

from pathlib import Path

from sb3_dreamer.presets import DEFAULT, hyperparams_dir


def find_config(config: str | None) -> str:
    """
    :param config: value of ``--conf-file``: a file or module of the user, one of our files such as ``sizes/12m.yml``, or None
    :return: one of our files if ``config`` is None, or if it names one of ours and no file of the user; otherwise ``config``
    """
    ours = hyperparams_dir() / (config or DEFAULT)
    is_ours = config is None or (not Path(config).exists() and ours.is_file())
    return str(ours) if is_ours else str(config)
