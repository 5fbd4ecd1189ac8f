"""The manual: built without warnings and without a network, its code runs, and its tables agree with the code."""

import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from sb3_dreamer import DreamerV3

ROOT = Path(__file__).parent.parent
# A block of code, and what it needs, by a comment before it.
BLOCK = re.compile(r"(?:<!-- needs: (\w+) -->\n)?^ *```python\n(.*?)^ *```", flags=re.DOTALL | re.MULTILINE)
PAGES = {path.stem: BLOCK.findall(path.read_text()) for path in sorted((ROOT / "docs").glob("*.md"))}
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
    """The preset that the page writes has only keys of RL Zoo and of DreamerV3."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "zoo.md").read_text(), flags=re.DOTALL)
    (settings,) = yaml.safe_load(block).values()
    zoo = {"n_timesteps", "n_envs", "env_wrapper", "policy"}
    assert set(settings) - zoo <= set(inspect.signature(DreamerV3).parameters)
    assert settings["learning_rate"] == 1e-4


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
