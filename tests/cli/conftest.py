"""run.py as a user types it, in this process; the smallest model and evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers  # noqa: F401 - its log handler keeps the stderr of the first import: that must not be a test's

from tests.cli.as_typed import ROOT, Command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """command("method=snapkv", ...) -> exit code of run.py, run in this process."""
    import run

    monkeypatch.chdir(ROOT)

    def call(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *args])
        try:
            return run.run()
        except SystemExit as stopped:
            return int(stopped.code or 0)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    from tests.cli.random_model import save

    return save(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> list[str]:
    """The smallest evaluation: two tasks of two samples each, on random weights."""
    return [
        "model=hf",
        f"model.path={model}",
        f"runs={tmp_path}",
        "benchmark.length=1200",
        "benchmark.tasks=[niah_single_1,niah_multikey_2]",
        "limit=2",
    ]
