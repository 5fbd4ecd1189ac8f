"""Hooks for mkdocs: the README is the first page, and links to files outside of the manual become their names."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# [text](../path) from a page, [text](path) from the README
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")


def as_name(match: re.Match) -> str:
    """:return: a link to a file outside of the manual, as text"""
    text, path = match.groups()
    name = f"`{path}`"
    return name if text.strip("`") in path else f"{text} ({name})"


def on_files(files, config):
    """Add the README as the first page. Its links start at the root of the repository, those of the pages in `docs/`."""
    readme = (ROOT / "README.md").read_text()
    links = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
    readme = links.sub(lambda m: f"]({m[1][5:]})" if m[1].startswith("docs/") else f"](../{m[1]})", readme)
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown, **kwargs):
    """Replace links that only work in the repository."""
    return OUTSIDE.sub(as_name, markdown)
