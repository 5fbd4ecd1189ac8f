"""The README: code runs, tables are correct, and there are exactly two set-up commands."""

import re
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


def test_two_set_up_commands():
    commands = set(re.findall(r"^\| `(make [^`]*)` \|", README, flags=re.MULTILINE))
    assert commands == {"make demo", "make test"}


def test_parameter_counts_are_those_of_the_models():
    page = (ROOT / "docs" / "parameters.md").read_text()
    table = dict(re.findall(r"`(\w+)` \| ([\d,]+ \| [\d,]+)", page[page.index("## Model sizes") :]))
    counts = dict(LETTERS) | {name: (OFFICIAL_IMAGE[name][-1], OFFICIAL_VECTOR[name][-1]) for name in OFFICIAL_IMAGE}
    assert table == {name: f"{image:,} | {vector:,}" for name, (image, vector) in counts.items()}


def test_glossary_names_every_metric():
    model = counter_model(training_ratio=8)
    model.learn(60, log_interval=None)
    names = set()
    model.logger.dump = lambda step: names.update(model.logger.name_to_value)
    model.dump_logs()
    ours = {name for name in names if name.split("/")[0] in ("train", "world_model", "actor_critic", "replay")}
    glossary = (ROOT / "docs" / "logging.md").read_text()
    assert len(ours) > 15
    ours = {re.sub("/(world_model|actor|critic)$", "/PART", name) for name in ours}
    missing = [name for name in ours if f"`{name}`" not in glossary and f"`{name.split('/', 1)[1]}`" not in glossary]
    assert not missing


def test_local_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_one_screen():
    """Everything else is in the manual."""
    assert len(README.splitlines()) <= 90
