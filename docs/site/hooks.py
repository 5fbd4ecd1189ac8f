"""Hooks for mkdocs: the README is the first page, links into the repository become names, and code gets line numbers."""

import ast
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# A link from a page to a file outside of the manual, [text](../path).
OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#\s]+)(?:#[^)]*)?\)")
# A place in the code, `sb3_dreamer/file.py:Class.method`.
CODE = re.compile(r"`(sb3_dreamer/[\w/]+\.py):([\w.]+)`")


def as_name(match: re.Match) -> str:
    """:return: a link to a file outside of the manual, as text"""
    text, path = match.groups()
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"


def with_line(match: re.Match) -> str:
    """
    :return: a place in the code with its line
    :raises PluginError: if there is no such class or function
    """
    file, name = match.groups()
    nodes = ast.parse((ROOT / file).read_text()).body
    for part in name.split("."):
        found = [node for node in nodes if getattr(node, "name", None) == part]
        if not found:
            raise PluginError(f"{file} has no {name}")
        nodes = found[0].body
    return f"`{Path(file).name}`, `{name}`, line {found[0].lineno}"


def on_files(files, config):
    """Add the README as the first page. Its links start at the root of the repository, those of the pages in `docs/`."""
    readme = (ROOT / "README.md").read_text()
    links = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
    readme = links.sub(lambda m: f"]({m[1][5:]})" if m[1].startswith("docs/") else f"](../{m[1]})", readme)
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown, **_):
    """Replace links that only work in the repository, and name the lines of code."""
    return CODE.sub(with_line, OUTSIDE.sub(as_name, markdown))
