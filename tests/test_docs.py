"""The manual is built without warnings and without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
