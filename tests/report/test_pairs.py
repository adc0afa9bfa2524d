"""Scorers under allocators: the numbers, tables and heat map that the documents show of docs/data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from evals.looks import find_allocator
from evals.pair_plots import draw_pairs
from evals.plots import plt
from evals.report.data import MEAN, Cell
from scripts.pair_tables import PairTables, read_costs
from scripts.pairs import correlate, correlate_ranks, find_pairs, split_variance
from tests.as_typed import ROOT

ALLOCATORS = ("uniform", "adakv", "budget_table")
SCORES = {  # scorer -> allocator -> task
    "snapkv": {"uniform": (0.2, 0.4), "adakv": (0.2, 0.6), "budget_table": (0.5, 0.7)},
    "oracle": {"uniform": (0.8, 1.0), "adakv": (0.7, 0.9), "budget_table": (0.9, 1.0)},
    "tova": {"uniform": (0.1, 0.1), "adakv": (0.0, 0.0), "budget_table": (0.1, 0.1)},
}


def cells_of(run: str, scorer: str, allocator: str, budget: str, scores: tuple[float, ...], n: int = 4) -> list[Cell]:
    about = ("m", "b", "question-agnostic", "x", scorer, allocator, budget)
    each = {f"t{i}": (score, n) for i, score in enumerate(scores)}
    lines = {MEAN: (float(np.mean(scores)), n * len(scores)), **each}
    return [Cell(*about, task, s, s / 2, (1 + s) / 2, k, None, run, "c", "d") for task, (s, k) in lines.items()]


CELLS = [
    *cells_of("full", "", "", "all", (1.0, 1.0)),
    *(
        cell
        for scorer, row in SCORES.items()
        for allocator, scores in row.items()
        for cell in cells_of(f"{scorer}-{allocator}", scorer, allocator, "0.2", scores)
    ),
]


@pytest.fixture
def tables(tmp_path: Path) -> PairTables:
    (tmp_path / "data").mkdir()
    captured = {"snapkv": [[0.5, 0.7]], "tova": [[0.2, 0.2]]}
    (tmp_path / "data/f.json").write_text(json.dumps({"facts": {"contexts": 7}, "captured": captured}))
    (tmp_path / "benchmarks.md").write_text((ROOT / "docs/benchmarks.md").read_text())
    return PairTables("d", "title", [0.2], ALLOCATORS, ["oracle"], "f", {}, tmp_path, CELLS)


def body(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.split("\n\n")[0].splitlines()[2:]]


@settings(max_examples=50)
@given(arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(2, 5)), elements=st.floats(0, 1, width=32)))
def test_the_parts_are_those_of_a_least_squares_fit(means: np.ndarray) -> None:
    """Fitted with one indicator a scorer, then one an allocator too: each takes away its part of the variance."""
    s, a = np.indices(means.shape).reshape(2, -1)
    y = means.ravel()
    rows, columns = np.eye(means.shape[0])[s], np.eye(means.shape[1])[a]

    def left(*parts: np.ndarray) -> float:
        x = np.hstack([np.ones((len(y), 1)), *parts])
        return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())

    whole = left()
    shares = split_variance(means)
    if whole / len(y) > 1e-6:
        found = [whole - left(rows), left(rows) - left(rows, columns), left(rows, columns)]
        assert shares == pytest.approx(np.array(found) / whole, abs=1e-6)
    assert split_variance(np.stack([means, means]))[1] == pytest.approx(shares)


def test_scores_that_do_not_vary_have_no_parts() -> None:
    assert (split_variance(np.full((3, 2), 0.7)) == 0).all()


def test_rows_from_the_best_to_the_least_and_the_samples_said(tables: PairTables) -> None:
    text = tables.markdown("scores")
    assert body(text) == [
        ["oracle", "90.0 (45.0-95.0)", "80.0 (40.0-90.0)", "**95.0** (47.5-97.5)"],
        ["SnapKV", "30.0 (15.0-65.0)", "40.0 (20.0-70.0)", "**60.0** (30.0-80.0)"],
        ["TOVA", "**10.0** (5.0-55.0)", "0.0 (0.0-50.0)", "**10.0** (5.0-55.0)"],
    ]
    assert "2 tasks, 4 samples of each (n = 8); mean of tasks, per cent; full cache 100.0. " in text
    assert text.splitlines()[0] == "| scorer | equal | AdaKV | LU-KV |"


def test_gains_are_against_equal_budgets_and_the_bound_is_left_out(tables: PairTables) -> None:
    equal, adakv, lukv = body(tables.markdown("allocators"))
    assert equal[:2] == ["equal", "20.0"]
    # adakv: +10 under SnapKV (one task of two), -10 under TOVA in both; LU-KV: +30 in both, and 0
    assert adakv == ["AdaKV", "20.0", "+0.0", "0 of 2", "1 of 2", "SnapKV +10.0", "TOVA -10.0"]
    assert lukv == ["LU-KV", "35.0", "+15.0", "1 of 2", "0 of 2", "SnapKV +30.0", "TOVA +0.0"]


def test_a_row_a_scorer_with_its_fidelity_and_cost(tables: PairTables) -> None:
    oracle, snapkv, tova = body(tables.markdown("scorers"))
    costs = read_costs(ROOT / "docs/benchmarks.md")
    assert snapkv == ["SnapKV", "0.60", "30.0", "60.0", "+30.0 (+30.0 to +30.0)", "LU-KV, 60.0", costs["snapkv"]]
    assert tova[1:3] == ["0.20", "10.0"]
    assert (oracle[1], oracle[-1]) == ("-", "-")
    assert costs["snapkv"].endswith("%")
    assert tables.markdown("scorers").endswith("Captured: 7 other contexts, `docs/data/f.json`.")
    (tables.folder / "data/f.json").unlink()
    with pytest.raises(ValueError, match=r"f\.json is not there: python -m scripts\.studies\.fidelity"):
        replace(tables, title="read anew").markdown("fidelity")


def test_variance_and_correlation_are_of_methods_alone(tables: PairTables) -> None:
    ((budget, *parts),) = body(tables.markdown("variance"))
    methods = np.array([np.mean(list(SCORES[s].values()), axis=1) for s in ("snapkv", "tova")])
    assert budget == "kept 20%"
    assert [part.split("%")[0] for part in parts] == [f"{100 * share:.0f}" for share in split_variance(methods)]
    assert [row[1].split()[0] for row in body(tables.markdown("fidelity"))] == ["1.00"] * 3
    with pytest.raises(ValueError, match="Did you mean 'scorers'"):
        tables.markdown("scorer")


def test_a_correlation_is_of_ranks() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 4, size=(2, 20, 6)).astype(float)  # with ties
    expected = [spearmanr(x, y)[0] for x, y in zip(*pairs, strict=True)]
    assert correlate_ranks(*pairs) == pytest.approx(expected, nan_ok=True)
    x = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    assert correlate(x, x**3)[0] == pytest.approx(1)
    value, low, high = correlate(x, -x)
    assert (value, low, high) == pytest.approx((-1, -1, -1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda cells: [c for c in cells if c.run_id != "tova-adakv"], "lacks tova x adakv x mean at budget 0.2"),
        (
            lambda cells: [*cells, *cells_of("again", "tova", "adakv", "0.2", (0.3, 0.3))],
            "and again are one pair",
        ),
        (lambda cells: [replace(c, n=9) if c.run_id == "tova-adakv" else c for c in cells], "differ in samples"),
        (lambda cells: [c for c in cells if c.budget == "all"], "has no cell at budget 0.2"),
        (lambda cells: [c for c in cells if c.budget != "all"], "differ in samples"),
    ],
)
def test_what_is_not_whole_is_refused(spoil, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=said):
        find_pairs(spoil(CELLS), 0.2, ALLOCATORS, "d")


def test_the_picture_has_the_scores(tables: PairTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr("evals.pair_plots.save", lambda figure, *args, **saving: kept.append(figure))
    plan = tables.plan()
    draw_pairs(**plan, path=tmp_path / "x.png")
    (figure,) = kept
    (panel,) = [axes for axes in figure.axes if axes.texts]
    wanted = [[100 * np.mean(SCORES[s][a]) for a in ALLOCATORS] for s in ("oracle", "snapkv", "tova")]
    assert np.allclose(np.asarray(panel.images[0].get_array()), wanted)
    assert panel.images[0].get_clim() == (0, 100)
    assert [text.get_text() for text in panel.texts] == [f"{value:.1f}" for row in wanted for value in row]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["oracle", "SnapKV", "TOVA"]
    assert [label.get_text() for label in panel.get_xticklabels()] == [find_allocator(a) for a in ALLOCATORS]
    plt.close(figure)
