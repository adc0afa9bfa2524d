"""The notebooks run from top to bottom; they are small and hold no outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SAID = {
    "01_quickstart": ("KiB of", "tiny__lukv__b0.1__ruler-1024__n2__s0", "mean of tasks"),
    "02_head_budgets": ("needs most", "no allocation can lose less than", "equal budgets"),
    "03_add_a_method": ("not [K, T] = ", "largest_value", "random"),
}
"""What their outputs must hold."""


def test_there_are_three() -> None:
    assert [p.stem for p in NOTEBOOKS] == list(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_small_and_without_outputs(path: Path) -> None:
    assert path.stat().st_size <= 20_000
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user opens it: in its own folder, the kernel's Python is the one of the tests."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}}).execute()
    said = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    for words in SAID[path.stem]:
        assert words in said
    assert "Traceback" not in said
