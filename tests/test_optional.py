"""What needs a package that is not installed with this one says so in a line that installs it."""

import importlib
from importlib.util import find_spec

import pytest


@pytest.mark.parametrize(
    ("module", "needs", "install"),
    [
        ("lukv.bridges.kvpress", "kvpress", "pip install kvpress==0.5.5"),
        ("evals.harness", "lm_eval", "pip install lm_eval==0.4.13"),
    ],
)
def test_without_its_package(module: str, needs: str, install: str) -> None:
    if find_spec(needs):
        pytest.skip(f"{needs} is installed")
    with pytest.raises(ImportError, match=install) as raised:
        importlib.import_module(module)
    assert "\n" not in str(raised.value)
