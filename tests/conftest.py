"""What tests of several folders share: run.py as a user types it, a small model and evaluation, the golden cases.

Imports nothing of evals: tests/backend also runs where only the backend's packages are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before torch is imported: on matrices as small as these, threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import transformers  # noqa: F401 - its log handler keeps the stderr of the first import: that must not be a test's

from tests.as_typed import ROOT, Command

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden cases and of others' data, beside the repository. Where it is absent the test is skipped; in
    CI it fails, unless LUKV_NO_SHARED=1 says that the folder is not to be had."""
    if not (SHARED / "golden").is_dir():
        reason = f"needs {SHARED} (golden cases and data of others, not part of this repository)"
        if os.environ.get("CI") and not os.environ.get("LUKV_NO_SHARED"):
            pytest.fail(f"{reason}; LUKV_NO_SHARED=1 goes without")
        pytest.skip(reason)
    return SHARED


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
    """A model folder with random weights, whose answers depend on context and question (cli/test_stand_in.py)."""
    from tests.random_model import save

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
