"""The manual: built without warnings and without a network, its code runs, and its tables agree with the code."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch.distributed.run
import yaml

from sb3_dreamer import DreamerV3
from sb3_dreamer.zoo.presets import check_keys

ROOT = Path(__file__).parent.parent
# A block of code, and what it needs: a module, in a comment, and how to install it.
BLOCK = re.compile(
    r"(?:<!-- needs: (\w+) -->\nThis needs `pip install [^`]+`:\n\n)?^ *```python\n(.*?)^ *```", flags=re.DOTALL | re.MULTILINE
)
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.stem: BLOCK.findall(path.read_text()) for path in DOCS}
WITH_CODE = [name for name, blocks in PAGES.items() if blocks]
# Pages whose blocks each make a model; the others build on the blocks before.
MAKES_A_MODEL = ("tuning", "troubleshooting")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The pages as a reader gets them."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    no_network = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=no_network, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_manual(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    home = (site / "index.html").read_text()
    assert all(f'href="{page}.html"' in home for page in pages - {"index"})


def test_nothing_is_loaded_from_the_web(site):
    loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]*)"', (site / "index.html").read_text())
    assert [one for one in loaded if "canonical" not in one] == []


def test_the_api_page_has_arguments_and_errors(site):
    api = (site / "api.html").read_text()
    assert "training_ratio" in api and "replayed (trained) time steps per environment step" in api
    for name in ("DreamerV3", "DreamerCheckpointCallback", "audit_world_model", "SequenceReplayBuffer", "RestartOnException"):
        assert re.search(rf'id="sb3_dreamer[\w.]*\.{name}"', api), name
    assert "predict_open_loop" in api and "ValueError" in api


def test_pages_with_code():
    pages = "checkpoints custom_networks deploying dreams environments logging security start troubleshooting tuning"
    assert set(pages.split()) <= set(WITH_CODE)


@pytest.mark.filterwarnings("ignore:No update w:UserWarning")  # because of the few steps
@pytest.mark.parametrize("name", WITH_CODE)
def test_code_runs(name, monkeypatch, tmp_path):
    """Unchanged code, with fewer steps. The later blocks use the imports and the model of the earlier ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "egl")  # no screen
    right = DreamerV3.learn
    monkeypatch.setattr(DreamerV3, "learn", lambda self, _, **kw: right(self, 40, **kw))
    names = {"__name__": name}
    for needs, block in PAGES[name]:
        if needs and importlib.util.find_spec(needs) is None:
            continue
        if name in MAKES_A_MODEL and "model = " in block:
            names.pop("model", None)
        exec(compile(textwrap.dedent(block), f"{name}.md", "exec"), names)
        if name in MAKES_A_MODEL and not names["model"].num_timesteps:
            names["model"].learn(40)
    if name == "dreams":
        kinds = {path.name.rsplit("_", 1)[0] for path in (tmp_path / "logs" / "DreamerV3_1" / "world_model").iterdir()}
        assert kinds == {"audit", "errors", "imagination", "traces_obs"}
    if name == "checkpoints":
        assert names["model"].num_timesteps == 120


def test_yaml_is_a_preset():
    """The presets that the pages write have only keys of RL Zoo and of DreamerV3, and numbers are numbers."""
    blocks = [
        yaml.safe_load(block) for path in DOCS for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    assert len(blocks) >= 4
    for block in blocks:
        presets = block.values() if "policy" in str(block) else [block | dict(policy="MlpPolicy", n_timesteps=1)]
        for settings in presets:
            check_keys(settings, "a page")
            assert not isinstance(settings.get("learning_rate"), str)


def test_parameters_and_their_defaults():
    """Every argument is on the page, with its default."""
    page = (ROOT / "docs" / "parameters.md").read_text()
    rows = dict(re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", page, flags=re.MULTILINE))
    table = {name: default for names, default in rows.items() for name in re.findall(r"`(\w+)`", names)}
    signature = inspect.signature(DreamerV3).parameters
    defaults = {name: one.default for name, one in signature.items() if not name.startswith("_")}
    assert {name for name in defaults if f"`{name}`" not in page} == set()
    shown = {name: table[name].strip("`").replace(",", "") for name in table.keys() & defaults.keys()}
    assert len(shown) > 25
    words = {"1 - 1/333": 1 - 1 / 333, "None": None, "True": True, "4e-5": 4e-5, "3e-4": 3e-4}
    wrong = []
    for name, text in shown.items():
        value = words[text] if text in words else text.strip('"') if '"' in text else float(text)
        if value != defaults[name]:
            wrong.append((name, text, defaults[name]))
    assert not wrong


def test_the_code_of_each_equation_exists():
    rows = re.findall(r"`(sb3_dreamer/[\w/]+\.py):([\w.]+)`", (ROOT / "docs" / "how_it_works.md").read_text())
    assert len(rows) > 40
    for path, name in rows:
        owner = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            owner = inspect.getattr_static(owner, part)  # raises an error if there is none


def test_each_diagram_is_drawn_by_code():
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "docs" / "site" / "diagrams.py")
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    words = {"training_loop": "replay buffer\n(sequences)", "one_step": "posterior"}
    assert {path.stem for path in diagrams.FOLDER.glob("*.svg")} == words.keys()
    for name, word in words.items():
        figure = getattr(diagrams, name)()
        assert word in {text.get_text() for text in figure.axes[0].texts}
        diagrams.plt.close(figure)


# ---- commands ----

COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:rl_zoo3|python|torchrun|make|pip|sbatch) ")
ZOO = {name: f"rl_zoo3.{name}" for name in ("train", "enjoy", "record_video", "plot_train", "plot_from_file", "push_to_hub")}


def commands() -> list[str]:
    """:return: all commands of the manual and the README, from blocks and from text"""
    found: set[str] = set()
    for path in [ROOT / "README.md", *DOCS]:
        text = path.read_text()
        blocks = re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        for line in [*lines, *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))]:
            line = " ".join(line.split("  #")[0].split())
            if COMMAND.match(line) and "..." not in line:
                found.add(line)
    return sorted(found)


@functools.cache
def help_of(program: str) -> str:
    """:return: what a module or a script prints with ``--help``"""
    if program == "torch.distributed.run":
        return torch.distributed.run.get_args_parser().format_help()
    arguments, out = sys.argv, io.StringIO()
    sys.argv = [program, "--help"]
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            main = getattr(importlib.import_module(program), program[8:], None) if program in ZOO.values() else None
            if main is not None:
                main()
            elif program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
    finally:
        sys.argv = arguments
    return out.getvalue()


def check_options(program: str, words: list[str]) -> None:
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", help_of(program)), (program, word)


def check_command(words: list[str]) -> None:
    """Check program, options, files and extras of a command."""
    while "=" in words[0]:
        words = words[1:]  # variables of the environment
    program, *words = words
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "sbatch":
        assert (ROOT / words[0]).is_file()
    elif program == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(word for word in words if word.startswith((".", "sb3_dreamer"))))
        setup = (ROOT / "setup.py").read_text()
        assert all(f'"{extra}":' in setup or f"{extra}=" in setup for one in extras for extra in one.split(","))
    elif program == "torchrun":
        n_options = next(i for i, word in enumerate([*words, "-m"]) if word == "-m" or not word.startswith("-"))
        check_options("torch.distributed.run", words[:n_options])
        if words[n_options:]:
            check_command(["python", *words[n_options:]])
    elif program == "rl_zoo3" or words[:2] == ["-m", "sb3_dreamer.zoo"]:
        name, *words = words if program == "rl_zoo3" else words[2:]
        check_options(ZOO[name], words)
        if "--conf-file" in words:
            file = words[words.index("--conf-file") + 1]
            assert file in ("my.yml",) or (ROOT / "hyperparams" / file).is_file(), file
    elif words[0] == "-m":
        module, *words = words[1:]
        check_options(module, words)
    elif words[0] not in ("train.py", "dreamerv3/main.py"):  # scripts of the user and of the official code
        check_options(words[0], words[1:])


def test_commands(monkeypatch):
    """Each command names a program, options and files that exist."""
    monkeypatch.setenv("COLUMNS", "200")
    found = commands()
    assert len(found) > 40
    for command in found:
        check_command(shlex.split(command))
