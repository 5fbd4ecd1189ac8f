"""Imports run downwards only: no file imports one that stands above it, and `common` knows nothing of `dreamerv3`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_dreamer"

# Lowest floor first. A file may import from floors below its own.
FLOORS = [
    {"zoo.startup._sb3_dreamer_zoo_hook", "zoo.presets", "zoo.ranks", "zoo.sampler", "zoo", "common.functional"},
    {
        "common.type_aliases",
        "common.torch_layers",
        "common.optimizers",
        "common.schedules",
        "common.training_ratio",
        "common.metrics",
        "common.replay",
        "common.distributed",
        "common.replay.device",
        "common.distributed.ranks",
        "common.save_util",
    },
    {"common.distributed.torchrun", "common.utils"},
    {"common.distributed.launch"},
    {
        "common.distributions",
        "common.preprocessing",
        "common.returns",
        "common.wrappers",
        "common.envs.counter",
        "common.envs.pixel_catch",
        "common.envs.pixel_reach",
        "common.envs.t_maze",
    },
    {"common.images", "common.vec_normalize", "common.env_checker", "dreamerv3.model_sizes", "dreamerv3.counterparts"},
    {"common.value_checks", "common.replay.storage"},
    {"common.buffers", "common.envs"},
    {"common.replay.write_back"},
    {"dreamerv3.networks", "dreamerv3.heads", "dreamerv3.rssm"},
    {"dreamerv3.world_model"},
    {"dreamerv3.imagination", "dreamerv3.policies"},
    {"dreamerv3.losses"},
    {"dreamerv3.update", "dreamerv3.checks"},
    {"dreamerv3.fast", "dreamerv3.fast.weights", "dreamerv3.fast.cuda_graph"},
    {"dreamerv3.fast.cells"},
    {"dreamerv3.fast.scan", "dreamerv3.fast.dream"},
    {"dreamerv3.fast.loss"},
    {"dreamerv3.fast.compiled", "dreamerv3.fast.captured"},
    {"dreamerv3.fast.ddp"},
    {"dreamerv3.fast.make_update"},
    {"dreamerv3.saving"},
    {"dreamerv3.settings"},
    {"dreamerv3.dreamerv3"},
    {"dreamerv3"},
    {""},
    {"zoo.plugin"},
    {"zoo.__main__"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, also those for type checkers alone."""
    tree = ast.parse(path.read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.removeprefix("sb3_dreamer").lstrip(".") for name in found if name.split(".")[0] == "sb3_dreamer"}


def test_imports_run_downwards():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "common" / "__init__.py":
            continue
        name = module_name(path)
        assert name in FLOOR_OF, f"{path.relative_to(ROOT)} has no floor: add it to FLOORS"
        wrong += [f"{name} imports {other}" for other in imports(path) if FLOOR_OF[other] >= FLOOR_OF[name]]
    assert not wrong, wrong


def test_one_file_alone_imports_the_fast_path():
    """A reader of the algorithm may leave the folder closed."""
    inside = {path for path in PACKAGE.rglob("*.py") if path.parent.name == "fast"}
    outside = {
        module_name(path) for path in set(PACKAGE.rglob("*.py")) - inside if any("fast" in name for name in imports(path))
    }
    assert outside == {"dreamerv3.dreamerv3"}


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
