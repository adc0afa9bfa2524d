"""Runs kvpress in its own process once, and prints the summary of what was compared."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lukv.budgets.table import BudgetTable
from lukv.learned import Probe
from lukv.qfilters import QFilters
from tests.baselines.conftest import made_up_table
from tests.peers.peer_cases import (
    GEOMETRY,
    KVZIP,
    LENGTHS,
    METHODS,
    MODELS,
    RATIOS,
    TRAINED,
    TRAINED_METHODS,
    filters_file,
    table_file,
)

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("LUKV_PEERS_PYTHON", HERE.parents[1] / ".venv-peers" / "bin" / "python"))
TABLES = HERE.parents[1] / "models" / "tiny" / "tables"
RANDOM = " ".join(MODELS)
ROWS = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def peers(tmp_path_factory) -> Path:
    """The folder with kvpress's results. LUKV_PEERS_RESULTS names one of an earlier run, to go on from."""
    if earlier := os.environ.get("LUKV_PEERS_RESULTS"):
        return Path(earlier)
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make it with `make test-peers`")
    folder = tmp_path_factory.mktemp("peers")
    for seed, (name, options) in enumerate(MODELS.items()):
        made_up_table(3, options["num_key_value_heads"], seed).save_npy(folder / table_file(name, ""))
        shape = 3, options["num_key_value_heads"], GEOMETRY["head_dim"]
        save_filters(folder, name, np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    save_filters(folder, TRAINED, Probe.load(TABLES / "qfilters.probe.safetensors", QFilters.kind).weights)
    for method in TRAINED_METHODS:
        if method.startswith("lukv_"):
            table = BudgetTable.load(TABLES / f"{method.removeprefix('lukv_')}.safetensors")
            table.save_npy(folder / table_file(TRAINED, method))
    environment = {**os.environ, "PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, HERE / "run_kvpress.py", folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def save_filters(folder: Path, model: str, filters: np.ndarray) -> None:
    """For their process and for ours."""
    np.save(folder / filters_file(model), filters, allow_pickle=False)
    Probe(filters, {}, QFilters.kind).save((folder / filters_file(model)).with_suffix(".probe.safetensors"))


@pytest.fixture
def summary(request):
    """summary(model, method, **figures): sums of the integers and the worst of the others are printed at the end, the
    models of random weights together."""
    rows = request.config.stash.setdefault(ROWS, {})

    def add(model, method, **figures):
        row = rows.setdefault((RANDOM if model in MODELS else model, method), {})
        for key, value in figures.items():
            row[key] = row.get(key, 0) + value if isinstance(value, int) else max(row.get(key, 0.0), value)

    return add


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, {})
    if not rows:
        return
    columns = ["heads", "count_differs", "set_differs", "ties", "score", "logit"]
    terminalreporter.section(f"against kvpress 0.5.5: {LENGTHS} tokens, {len(RATIOS)} ratios")
    terminalreporter.write_line(f"{'models, method':62}" + "".join(f"{column:>14}" for column in columns))
    for key in [*((RANDOM, m) for m in (*METHODS, "duo_attention", *KVZIP)), *((TRAINED, m) for m in TRAINED_METHODS)]:
        row = rows.get(key, {})
        cell = [
            f"{row[c]:>14}" if isinstance(row.get(c), int) else f"{row.get(c, float('nan')):>14.1e}" for c in columns
        ]
        terminalreporter.write_line(f"{', '.join(key):62}" + "".join(cell))
    for line in (
        "heads: (cell, layer, KV head) compared. count_differs: heads that we give one entry more or less (rounding).",
        "set_differs: heads with another kept set at the same count. ties: heads left out, with fewer entries than",
        "protected tokens, or with equal scores at the border (theirs: any of them). score, logit: largest difference,",
        "relative to the largest value.",
    ):
        terminalreporter.write_line(line)
