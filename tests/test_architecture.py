"""Imports only go to lower layers, `common` does not import `dreamerv3`, files are short, and each has tests."""

import ast
from pathlib import Path

from tests.support.package import PACKAGE, ROOT, module_name

# Lowest layer first. A module may import from lower layers only.
COMMON = [
    {
        "common",
        "common.distributed.ranks",
        "common.distributed.sb3_files",
        "common.envs.crafter",
        "common.envs.resumable",
        "common.files",
        "common.functional",
        "common.loss_weights",
        "common.optimizers",
        "common.pictures",
        "common.memory",
        "common.plain_data",
        "common.progress_bar",
        "common.random_states",
        "common.replay",
        "common.replay.device",
        "common.replay.disk",
        "common.returns",
        "common.save_util",
        "common.schedules",
        "common.type_aliases",
        "common.workers",
    },
    {
        "common.checkpoint",
        "common.clock",
        "common.distributed",
        "common.distributed.torchrun",
        "common.distributions",
        "common.env_state",
        "common.envs.counter",
        "common.envs.pixel_catch",
        "common.envs.pixel_reach",
        "common.envs.t_maze",
        "common.metrics",
        "common.preprocessing",
        "common.replay.write_back",
        "common.torch_layers",
        "common.wrappers",
    },
    {
        "common.distributed.launch",
        "common.env_checker",
        "common.envs",
        "common.images",
        "common.replay.storage",
        "common.utils",
        "common.vec_normalize",
    },
    {"common.distributed.algorithm", "common.value_checks"},
    {"common.buffers"},
    {"common.replay.chunks"},
]
READABLE = [
    {"dreamerv3.model_sizes", "dreamerv3.counterparts", "dreamerv3.run_state"},
    {"dreamerv3.networks", "dreamerv3.heads", "dreamerv3.rssm"},
    {"dreamerv3.world_model"},
    {"dreamerv3.imagination", "dreamerv3.policies"},
    {"dreamerv3.losses"},
    {"dreamerv3.update", "dreamerv3.checks", "dreamerv3.resume", "dreamerv3.predictions"},
]
FAST = [
    {"dreamerv3.fast", "dreamerv3.fast.weights", "dreamerv3.fast.cuda_graph"},
    {"dreamerv3.fast.cells"},
    {"dreamerv3.fast.scan", "dreamerv3.fast.dream"},
    {"dreamerv3.fast.loss"},
    {"dreamerv3.fast.compiled", "dreamerv3.fast.captured"},
    {"dreamerv3.fast.ddp", "dreamerv3.fast.pieces"},
    {"dreamerv3.fast.make_update"},
]
ALGORITHM = [{"dreamerv3.dreamerv3"}, {"dreamerv3"}]
PACKAGE_AND_ZOO = [
    {"world_model_audit", "plots", "presets", "zoo", "zoo.startup._sb3_dreamer_zoo_hook", "zoo.ranks", "zoo.sampler"},
    {"world_model_report"},
    {"callbacks"},
    {"", "zoo.presets", "zoo.resume"},
    {"zoo.plugin"},
    {"zoo.__main__"},
]
LAYERS = COMMON + READABLE + FAST + ALGORITHM + PACKAGE_AND_ZOO
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
# Test files of modules and folders without a `test_MODULE.py` or `test_FOLDER_MODULE.py` (the latter if two modules have the
# same name).
TESTS = {
    "common.distributed.launch": "test_distributed.py",
    "common.distributed.torchrun": "test_distributed.py",
    "common.envs": "test_envs.py",
    "common.type_aliases": None,  # named tuples
    "common.utils": None,  # aliases for old files
    "presets": "test_presets.py",
    "dreamerv3.fast": "test_scan.py test_update.py",
    "dreamerv3.run_state": "test_dreamerv3_resume.py",
    "zoo": "test_zoo.py",
}
MAX_LAYERS = 8  # of `dreamerv3/` without `fast/`


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, including imports for type checking."""
    tree = ast.parse(path.read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in froms), f"{path} has a relative import"
    found = {node.module for node in froms}
    # `from package import module` also imports a module.
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    found |= {name for name in names if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()}
    found |= {name for name in names if (ROOT / name.replace(".", "/")).is_dir()}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.removeprefix("sb3_dreamer").lstrip(".") for name in found if name.split(".")[0] == "sb3_dreamer"}


def import_graph() -> dict[str, set[str]]:
    """Imports of each module of the package from the package."""
    return {module_name(path): imports(path) - {module_name(path)} for path in PACKAGE.rglob("*.py")}


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules in import cycles."""
    reached = {name: set(others) for name, others in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return sorted(name for name in graph if name in reached[name])


def count_layers(graph: dict[str, set[str]]) -> int:
    """Number of modules on the longest path of an import graph without cycles."""

    def height(name: str) -> int:
        return 1 + max((height(other) for other in graph[name] & graph.keys()), default=0)

    return max(map(height, graph))


def test_import_graph_includes_type_checking_imports_and_finds_cycles(tmp_path):
    lines = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sb3_dreamer.common.buffers import A\n"
    lines += "def f():\n    import sb3_dreamer.common.metrics\n    from sb3_dreamer.dreamerv3 import fast\n"
    (tmp_path / "one.py").write_text(lines)
    assert imports(tmp_path / "one.py") == {"common.buffers", "common.metrics", "dreamerv3", "dreamerv3.fast"}
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert count_layers({"a": {"b", "c"}, "b": {"c"}, "c": {"other"}}) == 3


def test_imports_run_downwards():
    """Prints the size of the graph (``pytest -s``): imports, upward imports, cycles, layers."""
    graph = import_graph()
    assert graph.keys() == LAYER_OF.keys(), f"add to LAYERS, or remove: {graph.keys() ^ LAYER_OF.keys()}"
    edges = [(name, other) for name, others in graph.items() for other in others]
    upward = [f"{name} imports {other}" for name, other in edges if LAYER_OF[other] >= LAYER_OF[name]]
    inside = {name: others for name, others in graph.items() if name.startswith("dreamerv3.")}
    readable = {name: others for name, others in inside.items() if not name.startswith("dreamerv3.fast")}
    n_layers, n_all = count_layers(readable), count_layers(inside)
    print(
        f"\n{len(edges)} imports, {len(upward)} upwards, {len(cycles(graph))} in cycles, "
        f"{n_layers} layers in dreamerv3/ without fast/, {n_all} with it"
    )
    assert not upward, upward
    assert not cycles(graph)
    assert n_layers <= MAX_LAYERS


def test_only_the_algorithm_imports_the_fast_path():
    """The algorithm can be read without the ``fast`` folder."""
    inside = {path for path in PACKAGE.rglob("*.py") if path.parent.name == "fast"}
    outside = {
        module_name(path) for path in set(PACKAGE.rglob("*.py")) - inside if any("fast" in name for name in imports(path))
    }
    assert outside == {"dreamerv3.dreamerv3"}


def test_every_module_has_a_test_file():
    """Every entry of TESTS is needed: its module has no test file of that name, and the files listed exist."""
    there, used, missing = {path.name for path in (ROOT / "tests").glob("test_*.py")}, set(), []
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    for path in paths:
        folder, _, name = module_name(path).rpartition(".")
        is_alone = [other.name for other in paths].count(path.name) == 1
        if {f"test_{name}.py" if is_alone else "", f"test_{folder.split('.')[-1]}_{name}.py"} & there:
            continue
        row = next((row for row in (module_name(path), folder, folder.split(".")[0]) if row in TESTS), None)
        used.add(row)
        missing += [f"{folder}.{name}"] if row is None else set((TESTS[row] or "").split()) - there
    assert not missing, missing
    assert used == set(TESTS)


def docstring_lines(node: ast.AST) -> int:
    """:return: lines of the node's docstring, 0 if it has none"""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    if not isinstance(node, documented) or ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def test_files_and_functions_fit_on_a_screen():
    too_long = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        nodes = list(ast.walk(ast.parse(text)))
        n_code = len(text.splitlines()) - sum(map(docstring_lines, nodes))
        if n_code > 400:
            too_long.append(f"{path.name}: {n_code} lines")
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                n_lines = node.end_lineno - node.body[0].lineno + 1
                if n_lines > 60:
                    too_long.append(f"{path.name}: {node.name} has {n_lines} lines")
    assert not too_long, too_long
