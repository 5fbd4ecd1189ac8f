"""Folders of the repository, and names of the package's modules."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "sb3_dreamer"


def module_name(path: Path) -> str:
    """:return: name of the module relative to the package, e.g. ``common.buffers``"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")
