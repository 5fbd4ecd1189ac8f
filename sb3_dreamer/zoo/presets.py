"""Where the YAML files lie: inside the package once installed, at the top of a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
DEFAULT = "dreamerv3.yml"


def hyperparams_dir() -> Path:
    """
    :return: the folder with ``dreamerv3.yml``
    :raises FileNotFoundError: if the installation is broken
    """
    for folder in (PACKAGE / "hyperparams", PACKAGE.parent / "hyperparams"):
        if (folder / DEFAULT).is_file():
            return folder
    raise FileNotFoundError(f"`{DEFAULT}` lies neither in {PACKAGE} nor beside it: install sb3_dreamer again")


def find_config(config: str | None) -> str:
    """
    :param config: as ``--conf-file`` gives it: a file or module of the user's, one of our files such as
        ``sizes/12m.yml``, or None
    :return: ours where it is None or names one of ours and no file of the user's; else as it came
    """
    ours = hyperparams_dir() / (config or DEFAULT)
    is_ours = config is None or (not Path(config).exists() and ours.is_file())
    return str(ours) if is_ours else str(config)
