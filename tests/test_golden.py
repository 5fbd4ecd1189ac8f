"""Compare with the official code, array by array. ``GOLDEN_DIR`` sets another folder of the same format."""

import pytest

from tests.golden.checks import run_check
from tests.golden.files import FILES, FOLDER, load, perturb


def test_golden_files_exist():
    assert FILES, f"no golden files in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    run_check(path.stem, load(path))


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("full_loss")], ids=lambda path: path.stem)
def test_golden_of_the_step_by_step_model(path):
    run_check(path.stem, load(path), fused=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_detects_changes(path):
    """
    A small change of any array that is not an input makes the check fail. Our numbers are computed again only if they may
    depend on the changed array.
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
