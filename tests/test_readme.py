"""The README: code runs, tables are correct, and there are exactly two set-up commands."""

import re
import textwrap
from pathlib import Path

import pytest
import torch as th

from sb3_dreamer import DreamerV3
from tests.support.helpers import counter_model
from tests.support.sizes import LETTERS, OFFICIAL_IMAGE, OFFICIAL_VECTOR

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:No update will be made:UserWarning")  # because of the few steps
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block, tmp_path, monkeypatch):
    """Unchanged code, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    right = DreamerV3.learn
    monkeypatch.setattr(DreamerV3, "learn", lambda self, total_timesteps, **kw: right(self, min(total_timesteps, 90), **kw))
    th.manual_seed(0)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.filterwarnings("ignore:No update was made:UserWarning")  # because of the few steps
@pytest.mark.parametrize("name", ["tuning", "checkpoints", "security", "dreams"])
def test_the_code_of_the_pages_runs(name, monkeypatch, tmp_path):
    """The later blocks use the imports of the first one. A block of the tuning page only makes a model."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / f"{name}.md").read_text()
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", page, flags=re.DOTALL | re.MULTILINE)
    ]
    assert len(blocks) >= {"tuning": 5, "checkpoints": 3, "security": 1, "dreams": 3}[name]
    right = DreamerV3.learn
    monkeypatch.setattr(DreamerV3, "learn", lambda self, _, **kw: right(self, 40, **kw))
    names = {"__name__": name}
    for block in blocks:
        if name == "tuning":
            names.pop("model", None)
        exec(compile(block, f"{name}.md", "exec"), names)
        if name == "tuning" and not names["model"].num_timesteps:
            names["model"].learn(40)
    if name == "dreams":
        kinds = {path.name.rsplit("_", 1)[0] for path in (tmp_path / "logs" / "DreamerV3_1" / "world_model").iterdir()}
        assert kinds == {"audit", "errors", "imagination", "traces_obs"}
    if name == "checkpoints":
        assert names["model"].num_timesteps == 120


def test_two_set_up_commands():
    commands = set(re.findall(r"^\| `(make [^`]*)` \|", README, flags=re.MULTILINE))
    assert commands == {"make demo", "make test"}


def test_parameter_counts_are_those_of_the_models():
    table = dict(re.findall(r"`(\w+)` \| ([\d,]+ \| [\d,]+)", README))
    counts = dict(LETTERS) | {name: (OFFICIAL_IMAGE[name][-1], OFFICIAL_VECTOR[name][-1]) for name in OFFICIAL_IMAGE}
    assert table == {name: f"{image:,} | {vector:,}" for name, (image, vector) in counts.items()}


def test_glossary_names_every_metric():
    model = counter_model(training_ratio=8)
    model.learn(60, log_interval=None)
    names = set()
    model.logger.dump = lambda step: names.update(model.logger.name_to_value)
    model.dump_logs()
    ours = {name for name in names if name.split("/")[0] in ("train", "world_model", "actor_critic", "replay")}
    glossary = README[README.index("## What the logger shows") :]
    assert len(ours) > 15
    missing = [name for name in ours if f"`{name}`" not in glossary and f"`{name.split('/')[1]}`" not in glossary]
    assert not missing


def test_local_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
