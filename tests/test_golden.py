"""Our numbers against the official code's, array by array. ``GOLDEN_DIR`` names another folder of the same format."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.golden_checks import run_check

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def perturb(array: np.ndarray) -> np.ndarray:
    """Two percent more, zeros become 0.02; in flags, integers and one-hots one entry is flipped."""
    changed = array.copy()
    if array.dtype.kind in "iub":
        middle = changed.flat[array.size // 2]
        changed.flat[array.size // 2] = middle - 1 if middle > 0 else 1
    elif array.size > 1 and set(np.unique(array)) == {0.0, 1.0}:
        changed.flat[array.size // 2] = 1.0 - changed.flat[array.size // 2]
    else:
        changed = np.where(array == 0.0, np.asarray(0.02, array.dtype), array * np.asarray(1.02, array.dtype))
    return changed


def test_golden_files_are_there():
    assert FILES, f"no golden files in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    run_check(path.stem, load(path))


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("full_loss")], ids=lambda path: path.stem)
def test_golden_of_the_plain_model(path, plain_model):
    run_check(path.stem, load(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_notices(path):
    """
    Every array that is no input, changed a little, makes the check fail. Our numbers are computed anew only where they
    may depend on the changed array.
    """
    arrays = load(path)
    golden = run_check(path.stem, arrays)
    assert golden.outputs
    unnoticed = []
    for name in sorted(golden.outputs):
        changed = perturb(arrays[name])
        try:
            if name in golden.ours and name not in golden.read:
                golden.compare(name, changed)
            else:
                run_check(path.stem, {**arrays, name: changed})
        except AssertionError:
            continue
        unnoticed.append(name)
    assert not unnoticed, f"{path.stem}: changes in {unnoticed} go unnoticed"
