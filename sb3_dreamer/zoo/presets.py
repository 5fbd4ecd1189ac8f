"""Find the YAML files: inside the installed package, or at the top level of a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
DEFAULT = "dreamerv3.yml"


def hyperparams_dir() -> Path:
    """
    :return: the folder of ``dreamerv3.yml``
    :raises FileNotFoundError: if the installation is broken
    """
    for folder in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams"):
        if (folder / DEFAULT).is_file():
            return folder
    raise FileNotFoundError(f"`{DEFAULT}` is neither in {PACKAGE} nor next to it: install sb3_dreamer again")


def find_config(config: str | None) -> str:
    """
    :param config: value of ``--conf-file``: a file or module of the user, one of our files such as ``sizes/12m.yml``, or None
    :return: one of our files if ``config`` is None, or if it names one of ours and no file of the user; otherwise ``config``
    """
    ours = hyperparams_dir() / (config or DEFAULT)
    is_ours = config is None or (not Path(config).exists() and ours.is_file())
    return str(ours) if is_ours else str(config)
