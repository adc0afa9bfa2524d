"""The needle's heat map: what the report, docs/data and the page make of runs with a length and a depth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import report
from evals.grid import Grid, arrange, count_square, make_grid
from evals.grid_plots import COLOURS, cut_evenly, draw_grids
from evals.plots import plt
from evals.report.data import collect_squares, read_data, read_squares, write_data
from evals.report.details import html_details
from evals.report.grids import draw_needles, read_grids
from evals.report.runs import group_by_experiment, read_results
from tests.report.finished_runs import write_evaluation

LENGTHS, DEPTHS = (512, 1024), (0.0, 0.5, 1.0)


def write_run(runs: Path, level: float, *overrides: str) -> str:
    """A finished run whose scores fall with the length and the depth, from `level` on, 2 samples a square."""
    values = {f"number_{n}": [level - i / 8 - (n > 600) / 4 for i in range(3)] * 2 for n in LENGTHS}
    run_id = write_evaluation(runs, values, *overrides)
    path = runs / run_id / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line |= {"length": int(line["task"].split("_")[1]), "depth": DEPTHS[number % 3]}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_id


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path, 1.0, "method=full")
    for budget in ("budget=0.1", "budget=0.2"):
        write_run(tmp_path, 0.875, "method=lukv", budget)
        write_run(tmp_path, 0.5, "method=snapkv", budget)
    return tmp_path


def test_a_square_is_the_mean_of_its_samples() -> None:
    rng = np.random.default_rng(0)
    lines = [
        {"length": int(rng.choice(LENGTHS)), "depth": float(rng.choice(DEPTHS)), "score": float(rng.random())}
        for _ in range(50)
    ]
    grid = make_grid([*lines, {"task": "x", "score": 1.0}, {"error": "memory", "depth": 0.0, "length": 512}])
    assert grid is not None
    assert (grid.lengths, grid.depths) == (list(LENGTHS), list(DEPTHS))
    for i, depth in enumerate(DEPTHS):
        for j, length in enumerate(LENGTHS):
            own = [line["score"] for line in lines if (line["length"], line["depth"]) == (length, depth)]
            assert grid.scores[i][j] == pytest.approx(np.mean(own))
            assert grid.counts[i][j] == len(own)


def test_squares_that_nobody_asked_are_empty() -> None:
    grid = arrange({(512, 0.0): (1.0, 2), (1024, 0.5): (0.5, 1)})
    assert grid == Grid([512, 1024], [0.0, 0.5], [[1.0, None], [None, 0.5]], [[2, 0], [0, 1]])
    assert count_square([grid]) == "n = 1 to 2 a square"
    assert make_grid([{"score": 1.0}]) is None


def test_the_report_draws_it(runs: Path) -> None:
    assert report.write(runs, runs / "report", None) == 0
    (picture,) = (runs / "report").glob("*__needle.png")
    assert all(picture.with_suffix(ending).is_file() for ending in (".svg", ".pdf"))
    assert picture.name in (runs / "report/report.md").read_text()
    page = (runs / "report/leaderboard.html").read_text()
    assert "Facts found by length and depth: tiny" in page
    assert "n = 2 a square" in page
    svg = picture.with_suffix(".svg").read_text()
    for word in ("full cache", "SnapKV", "kept 10%", "kept 20%", "512", "1k", "50%"):
        assert f"<!-- {word} -->" in svg


def test_panels_have_the_runs_scores_in_one_scale(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back from the figure before it is written: each panel's picture, its scale and its numbers."""
    kept = []
    monkeypatch.setattr("evals.grid_plots.save", lambda figure, *args, **saving: kept.append(figure))
    ((name, group),) = group_by_experiment(read_results(runs)).items()
    draw_needles(name, group, runs, tmp_path)
    (figure,) = kept
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 5
    expected = {
        r["run_id"]: 100 * np.array(grid.scores) for r in group for grid in [read_grids([r], runs)[r["run_id"]]]
    }
    shown = [np.asarray(axes.images[0].get_array()) for axes in panels]
    for picture in expected.values():
        assert any(np.allclose(picture, one) for one in shown)
    for axes, values in zip(panels, shown, strict=True):
        assert axes.images[0].get_clim() == (0, 100)
        assert [text.get_text() for text in axes.texts] == [f"{v:.0f}" for v in values.flat]
    plt.close(figure)


def test_the_colours_are_told_in_grey() -> None:
    """Lightness only rises, and each tenth of the scale is lighter than the one before by enough to see."""
    red, green, blue = plt.get_cmap(COLOURS)(np.linspace(0, 1, 11))[:, :3].T
    grey = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    assert (np.diff(116 * np.cbrt(grey)) > 4).all()


def test_many_methods_and_squares(tmp_path: Path) -> None:
    large = arrange({(n * 512, d / 10): (0.5, 1) for n in range(1, 17) for d in range(11)})
    assert large is not None
    draw_grids(None, {"kept 10%": {f"method {i}": large for i in range(5)}}, "title", tmp_path / "x.png")
    draw_grids(large, {}, "the full cache alone", tmp_path / "y.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}{e}" for n in "xy" for e in (".pdf", ".png", ".svg")]
    assert cut_evenly([], 3) == [[]]


def test_squares_in_docs_data(runs: Path, tmp_path: Path) -> None:
    assert report.write_cells(runs, "*", tmp_path / "docs" / "x.csv") == 0
    squares = read_squares(tmp_path / "docs/x-grid.csv")
    assert squares == collect_squares(runs)
    assert len(squares) == 5 * len(LENGTHS) * len(DEPTHS)
    at = {(s.method, s.budget, s.length, s.depth): s for s in squares}
    one = at["lukv", "0.1", 1024, 0.5]
    assert (one.score, one.n) == (0.5, 2)
    assert at["full", "all", 512, 0.0].score == 1
    cells = [c for c in read_data(tmp_path / "docs/x.csv") if c.task == "number_512"]
    assert {c.method: c.score for c in cells if c.budget == "all"} == {"full": 0.875}
    write_data(tmp_path / "again.csv", squares)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "docs/x-grid.csv").read_text()
    text = (tmp_path / "again.csv").read_text().replace(",512,", ",short,", 1)
    (tmp_path / "again.csv").write_text(text)
    with pytest.raises(ValueError, match=r"again\.csv, line 2"):
        read_squares(tmp_path / "again.csv")


def test_the_row_on_the_page_has_it() -> None:
    grid = Grid([512, 1024], [0.0, 0.5], [[1.0, None], [0.25, 0.5]], [[1, 0], [1, 1]])
    row = {"run_id": "r", "tasks": {}, "grid": grid, "depths": {"number_512": [1.0] * 5}}
    html = html_details(row, 9)
    assert '512</i><i class="across">1024</i><i>0%</i><b' in html
    assert ">25</b>" in html
    assert "from the beginning to the end" not in html  # the same, less well
