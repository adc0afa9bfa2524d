"""The notebooks run from top to bottom; what they say and draw is stored in them, small."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SAID = {
    "01_quickstart": ("KiB of", "tiny__lukv__b0.1__ruler-1024__n2__s0", "mean of tasks"),
    "02_head_budgets": ("needs most", "no allocation can lose less than", "equal budgets"),
    "03_add_a_method": ("not [K, T] = ", "largest_value", "random"),
    "04_your_own_model": ("no budget table at", "saved as", "expected ('3146086',)", "keydiff    5.0% kept"),
}
"""What their outputs must hold."""


def test_all_of_them_are_checked() -> None:
    assert [p.stem for p in NOTEBOOKS] == list(SAID)


def test_what_is_stored_is_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= 300_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored_without_this_machine(path: Path) -> None:
    """Every code cell was run, in order, without an error; no path of the machine is in it."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    for words in SAID[path.stem]:
        assert words in said
    assert not re.search(r"/(tmp|root|home|work)/", path.read_text())


@pytest.mark.slow
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
