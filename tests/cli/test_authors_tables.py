"""allocator.path=FILE.npy and FOLDER: the authors' budget tables, here made-up ones, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


def save_pruned(path: Path, layers: int = 2, heads: int = 2) -> Path:
    """Pruned shares at 1% .. 99%, the first layer's heads pruned less."""
    path.parent.mkdir(exist_ok=True)
    pruned = np.arange(1, 100)[:, None, None] / 100 * np.ones((99, layers, heads))
    tilt = 0.2 * np.minimum(pruned[:, 0], 1 - pruned[:, 0])
    pruned[:, 0] -= tilt
    pruned[:, -1] += tilt
    np.save(path, pruned)
    return path


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_table_of_the_authors_is_used_as_it_is(whole_folder, command, settings, tmp_path, capsys):
    file = save_pruned(tmp_path / "curve_data" / "keydiff_avg_ratio.npy")
    path = file.parent if whole_folder else file
    runs = [f"runs={tmp_path}/runs" if s.startswith("runs=") else s for s in settings]
    assert command("method=lukv", f"allocator.path={path}", "budget=0.4", "reference=null", *runs) == 0
    said = capsys.readouterr().err
    assert said.count("keydiff_avg_ratio.npy says nothing of itself") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    about = json.loads((folder / "run.json").read_text())
    assert "weights" in about["caveats"][0]
    assert "allocator.path" in about["inputs"]
    budget = json.loads((folder / "result.json").read_text())["budget"]
    np.testing.assert_allclose(budget["heads"], [[0.48, 0.48], [0.32, 0.32]], atol=2e-3)


def test_a_table_of_another_shape_is_refused(command, settings, tmp_path, capsys):
    file = save_pruned(tmp_path / "t" / "keydiff_avg_ratio.npy", layers=3)
    assert command("method=lukv", f"allocator.path={file}", *settings) == 2
    assert "is for 3 layers of 2 KV heads, not for" in capsys.readouterr().err
    np.save(file, 100 * np.load(file))
    assert command("method=lukv", f"allocator.path={file}", *settings) == 2
    assert "outside 0 .. 1" in capsys.readouterr().err
