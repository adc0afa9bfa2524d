"""Tables for a paper: means over seeds, best and second, significance, LaTeX; and which runs a report is of."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import report
from evals.looks import find_name
from evals.report import figures
from evals.report.captions import describe_runs
from evals.report.compare import compare_group
from evals.report.paper import FULL, PaperTable, Score, escape_latex, make_tables
from evals.report.runs import group_by_experiment, label, read_results
from evals.report.select import select_results
from tests.report.finished_runs import write_evaluation

RNG = np.random.default_rng(1)
HARD = RNG.random(40)


def scores(level: float) -> dict[str, list[float]]:
    return {task: (level - 0.4 * HARD + 0.02 * RNG.standard_normal(40)).clip(0, 1).tolist() for task in ("one", "two")}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """lukv is a little better than keydiff and much better than random, which was run with three seeds."""
    write_evaluation(tmp_path, scores(0.9), "method=full")
    for budget in ("budget=0.1", "budget=0.2"):
        write_evaluation(tmp_path, scores(0.88), "method=lukv", budget)
        write_evaluation(tmp_path, scores(0.87), "method=keydiff", budget)
        write_evaluation(tmp_path, scores(0.5), "method=random", budget)
    for seed in (1, 2):
        write_evaluation(tmp_path, scores(0.9), "method=full", f"seed={seed}")
        write_evaluation(tmp_path, scores(0.5), "method=random", "budget=0.2", f"seed={seed}")
    return tmp_path


def tables_of(runs: Path, by: str = "budget", *select: str) -> list[PaperTable]:
    groups = group_by_experiment(select_results(read_results(runs), select))
    return make_tables(groups, by, dict.fromkeys(groups, "lukv"), runs)


def test_runs_of_several_seeds_are_one_cell(runs: Path) -> None:
    (table,) = tables_of(runs)
    assert list(table.columns) == ["0.1", "0.2"]
    assert next(iter(table.rows)) == FULL
    found = [r["score"] for r in read_results(runs) if r["method"] == "random" and r["config"]["budget"] == 0.2]
    assert len(found) == 3
    cell = table.rows["random"]["0.2"]
    assert (cell.mean, cell.sd) == pytest.approx((np.mean(found), np.std(found, ddof=1)))
    assert cell.ci95 is None
    assert table.rows["random"]["0.1"].ci95 is not None
    assert "seeds 0, 1, 2" in table.caption()
    assert f"± {100 * cell.sd:.1f}" in table.markdown()


def test_a_figure_over_seeds_has_the_means_and_the_deviations(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only random at 0.2 was run with all three seeds."""
    drawn = []
    monkeypatch.setattr(figures, "draw_scores", lambda *args: drawn.append(args))
    (caption,) = figures.draw_seeds(group_by_experiment(read_results(runs)), tmp_path)
    ((_, lines, full, title, path),) = drawn
    found = [r["score"] for r in read_results(runs) if r["method"] == "random" and r["config"]["budget"] == 0.2]
    (point,) = lines.pop("random")
    assert not lines
    assert point["score"] == pytest.approx(np.mean(found))
    assert np.ptp(point["ci95"]) == pytest.approx(2 * np.std(found, ddof=1))
    assert full["method"] == "full"
    assert caption.endswith(title)
    assert "seeds 0, 1, 2; mean and standard deviation over seeds" in title
    assert path.name == "tiny__ruler-512__n40__seeds.png"
    assert not figures.draw_seeds(group_by_experiment(select_results(read_results(runs), ["seed=0"])), tmp_path)


def test_rows_have_the_names_of_papers(runs: Path) -> None:
    (table,) = tables_of(runs, "budget", "seed=0")
    assert "\nLU-KV on KeyDiff & " in table.latex("x")
    assert "\nfull cache & " in table.latex("x")
    assert "| LU-KV on KeyDiff | " in table.markdown()
    assert "*: differs from LU-KV on KeyDiff on" in table.caption()
    assert find_name("lukv scorer.window=16") == "LU-KV on KeyDiff scorer.window=16"
    assert find_name("mine x=1", {"mine x=1": "Mine"}) == "Mine"


def test_best_second_and_significance(runs: Path) -> None:
    (table,) = tables_of(runs, "budget", "seed=0")
    groups = group_by_experiment(select_results(read_results(runs), ["seed=0"]))
    (group,) = groups.values()
    compared = compare_group(group, "lukv", runs)
    for column in table.columns:
        order = sorted((name for name in table.rows if name != FULL), key=lambda n: -table.rows[n][column].mean)
        assert [table.rows[name][column].rank for name in order] == [1, 2, 0]
        assert table.rows[FULL][column].rank == 0
    for r in group:
        differences = compared[r["run_id"]].get("method")
        if differences:
            cell = table.rows[label(r)][f"{r['config']['budget']:g}"]
            assert cell.p == pytest.approx(differences["mean"].p)
    assert table.rows["random"]["0.1"].star
    assert table.rows["lukv"]["0.1"].p is None


def test_a_column_for_each_benchmark(runs: Path) -> None:
    write_evaluation(runs, scores(0.7), "method=full", "benchmark.length=256")
    write_evaluation(runs, scores(0.6), "method=lukv", "budget=0.2", "benchmark.length=256")
    small, large = sorted(tables_of(runs, "benchmark", "seed=0"), key=lambda t: len(t.columns))
    assert list(large.columns) == ["ruler-256", "ruler-512"]
    assert set(large.rows[FULL]) == {"ruler-256", "ruler-512"}
    assert set(large.rows["keydiff"]) == {"ruler-512"}
    assert large.caption().count("budget 0.2") == 1
    assert "budget 0.1" in small.caption()


def test_latex_is_balanced_and_its_cells_are_marked() -> None:
    row = {"0.1": Score(0.5, (0.4, 0.6), rank=1, p=0.01), "0.5": Score(0.25, sd=0.01, rank=2)}
    table = PaperTable("a_model, 50% & more", "budget", ["0.1", "0.5"], {FULL: row, "x_y": row}, "other")
    text = table.latex("tab:x")
    assert r"\textbf{50.0}$^{*}$ {\scriptsize [40.0, 60.0]}" in text
    assert r"\underline{25.0} {\scriptsize $\pm$ 1.0}" in text
    assert r"x\_y & " in text
    assert r"a\_model, 50\% \& more" in text
    body = text.replace(r"\{", "").replace(r"\}", "")
    assert body.count("{") == body.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
    columns = [line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\")]
    assert columns == [2, 2, 2]


def test_any_text_is_latex() -> None:
    assert escape_latex("a_b & 5% $x {y} \\ ~ ^\n#") == (
        r"a\_b \& 5\% \$x \{y\} \textbackslash{} \textasciitilde{} \textasciicircum{} \#"
    )


def test_a_caption_says_n_and_protocol(runs: Path) -> None:
    found = select_results(read_results(runs), ["seed=0"])
    groups = group_by_experiment(found)
    assert describe_runs(next(iter(groups.values()))) == (
        "tiny, ruler-512, question-agnostic: 2 tasks, 40 samples of each (n = 80), seed 0"
    )


def test_selecting_keeps_the_full_cache(runs: Path) -> None:
    found = read_results(runs)
    assert {label(r) for r in select_results(found, ["method=lukv*,random*", "budget=0.1"])} == {
        *("full", "lukv", "random"),
    }
    assert len(select_results(found, ["seed=1"])) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--select modle=tiny", "Did you mean 'model'?"),
        ("--select budget=0.3", "no finished run has it. There are 0.1, 0.2"),
        ("--select seed", "write KEY=VALUE"),
        ("--group-by task", "choose from"),
    ],
)
def test_a_wrong_choice_is_one_line(
    runs: Path, options: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report.py", "--runs", str(runs), *options.split()])
    with pytest.raises(SystemExit) as stopped:
        sys.exit(report.main())
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not (runs / "report").exists()


def test_runs_that_differ_in_more_than_the_seed_do_not_share_a_cell(runs: Path) -> None:
    write_evaluation(runs, scores(0.5), "method=random", "budget=0.2", "benchmark.question_aware=true")
    assert len(tables_of(runs)) == 2
