"""Unexpected warnings of this package fail a test (``filterwarnings`` in pyproject.toml); other warnings do not."""

import ast
import warnings

import pytest

from tests.support.helpers import counter_model
from tests.support.package import PACKAGE, module_name


def warn_calls() -> list[tuple[str, ast.Call]]:
    """:return: every call of ``warnings.warn`` in the package, with the name of its module"""
    found = []
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        name = f"sb3_dreamer.{module_name(path)}"
        found += [(name, call) for call in calls if ast.unparse(call.func) in ("warnings.warn", "warn")]
    return found


def test_every_warning_is_attributed_to_its_own_module():
    """The filter uses the module, and would miss a warning with a ``stacklevel`` or of another category."""
    assert len(warn_calls()) >= 10
    assert not [name for name, call in warn_calls() if len(call.args) != 1 or call.keywords]


def test_a_warning_of_this_package_is_an_error():
    with pytest.raises(UserWarning, match="No update will be made"):
        counter_model(learning_starts=1000).learn(30)
    for name in {name for name, _ in warn_calls()}:
        with pytest.raises(UserWarning, match="something"):
            warnings.warn_explicit("something", UserWarning, "file.py", 1, module=name)


@pytest.mark.parametrize("module", ["stable_baselines3.common.buffers", "torch.optim", "tests.support.envs"])
def test_a_warning_of_another_package_is_not_an_error(module):
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("something", UserWarning, "file.py", 1, module=module)
    assert [str(warning.message) for warning in caught] == ["something"]


def test_an_expected_warning_is_not_an_error():
    with pytest.warns(UserWarning, match="No update will be made"):
        counter_model(learning_starts=1000).learn(30)
