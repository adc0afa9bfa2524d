"""make docs: tables and figures of the documents are what docs/data says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evals.report.data import MEAN, Cell, read_squares
from scripts.doc_tables import Table
from scripts.docs import Documents, find_stale, write
from tests.as_typed import ROOT


def test_the_repositorys_documents_are_what_its_data_say() -> None:
    assert not find_stale(Documents()), "run `make docs`"


@pytest.fixture
def copy(tmp_path: Path) -> Documents:
    """A repository of the pages alone."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return Documents(tmp_path)


def test_other_data_make_other_documents(copy: Documents) -> None:
    pages = [copy.root / "README.md", copy.root / "docs/beyond.md", copy.root / "docs/results-smollm2.md"]
    page, data = pages[-1], copy.root / "docs/data/smollm2-ruler-1024.csv"
    assert find_stale(copy) == []
    before = page.read_text()
    lines = data.read_text().splitlines()
    i = next(i for i, line in enumerate(lines) if ",lukv,keydiff,budget_table,0.2,mean," in line)
    head, tail = lines[i].split(",mean,")
    lines[i] = f"{head},mean,0.4321,{tail.split(',', 1)[1]}"
    data.write_text("\n".join(lines) + "\n")
    figures = [
        copy.root / f"docs/figures/{name}.png"
        for name in ("smollm2-ruler-1024", "smollm2-beyond", "smollm2-calibration")
    ]
    assert find_stale(copy) == [*pages, *figures]
    assert write(copy) == [*pages, *figures]
    assert find_stale(copy) == []
    assert "43.2 (" in page.read_text()

    def text_outside(text: str) -> list[str]:
        return [part.rpartition("<!-- end -->")[2] for part in text.split("<!-- table:")]

    assert text_outside(page.read_text()) == text_outside(before)


def test_another_square_makes_another_heat_map(copy: Documents) -> None:
    data, figure = copy.root / "docs/data/tiny-needle-grid.csv", copy.root / "docs/figures/tiny-needle.png"
    plan = copy.plan_heat_map("tiny-needle")
    squares = [s for s in read_squares(data) if (s.method, s.budget) == ("lukv", "0.05")]
    grid = plan["panels"]["kept 5%"]["LU-KV on KeyDiff"]
    shown = {(n, d): grid.scores[i][j] for i, d in enumerate(grid.depths) for j, n in enumerate(grid.lengths)}
    assert shown == {(s.length, s.depth): s.score for s in squares}
    assert list(plan["panels"]) == ["kept 20%", "kept 5%"]
    lines = data.read_text().splitlines()
    i = next(i for i, line in enumerate(lines) if ",lukv,0.05,4096,0.5,0.25,4," in line)
    lines[i] = lines[i].replace(",0.5,0.25,4,", ",0.5,0.75,4,")
    data.write_text("\n".join(lines) + "\n")
    assert find_stale(copy) == write(copy) == [figure]
    assert find_stale(copy) == []


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("<!-- end -->", "", "results-smollm2.md: a table's markers are"),
        (
            "<!-- table: smollm2-ruler-1024 -->",
            "<!-- table: smollm2-ruler-1204 -->",
            "Did you mean 'smollm2-ruler-1024'?",
        ),
    ],
)
def test_a_damaged_page_is_one_line_and_nothing_is_written(copy: Documents, was: str, becomes: str, said: str) -> None:
    page = copy.root / "docs/results-smollm2.md"
    page.write_text(page.read_text().replace(was, becomes, 1))
    readme = copy.root / "README.md"
    readme.write_text(readme.read_text().replace("LU-KV on KeyDiff", "stale"))
    before = {p: p.read_bytes() for p in (page, readme)}
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        write(copy)
    assert {p: p.read_bytes() for p in before} == before


def test_missing_data_name_the_command(copy: Documents) -> None:
    (copy.root / "docs/data/smollm2-ruler-1024.csv").unlink()
    with pytest.raises(ValueError, match=r"python report\.py data --name smollm2-ruler-1024"):
        find_stale(copy)


def run_of(method: str, budget: str, scores: dict[str, float], n: int, protocol: str = "plain") -> list[Cell]:
    """The cells of one run: its mean and its tasks, all with the interval 0.1 to 0.9."""
    mean = sum(scores.values()) / len(scores)
    return [
        Cell(
            *("m", "b", protocol, method, "", "", budget, task, score, 0.1, 0.9),
            *(n * len(scores) if task == MEAN else n, None, f"{method}-{budget}-{n}-{protocol}", "c", "d"),
        )
        for task, score in {MEAN: mean, **scores}.items()
    ]


SMALL = [
    *run_of("full", "all", {"x": 0.9, "y": 0.7}, 5),
    *run_of("a", "0.1", {"x": 0.2, "y": 0.4}, 5),
    *run_of("a", "0.2", {"x": 0.9, "y": 0.9}, 5),
    *run_of("b", "0.1", {"x": 0.5, "y": 0.0}, 5),
]


def body(table: Table, cells: list[Cell]) -> list[str]:
    return table.markdown(cells).split("\n\n")[0].splitlines()[2:]


def test_a_table_of_means() -> None:
    table = Table("d", ["b", "a", "c"], {"a": "A"}, budgets=[0.1, 0.2])
    assert body(table, SMALL) == [
        "| full cache | 80.0 (10.0-90.0) | 80.0 (10.0-90.0) |",
        "| b | 25.0 (10.0-90.0) |  |",
        "| A | **30.0** (10.0-90.0) | 90.0 (10.0-90.0) |",  # alone in its column: not the best of anything
    ]
    caption = table.markdown(SMALL).split("\n\n")[1]
    assert "2 tasks, 5 samples of each (n = 10)" in caption
    assert caption.endswith("Not measured yet: c.")


def test_a_table_of_tasks() -> None:
    table = Table("d", ["a", "b"], {}, budget=0.1)
    assert body(table, SMALL) == [
        "| x | 90.0 (10.0-90.0) | 20.0 (10.0-90.0) | **50.0** (10.0-90.0) |",
        "| y | 70.0 (10.0-90.0) | **40.0** (10.0-90.0) | 0.0 (10.0-90.0) |",
        "| mean | 80.0 (10.0-90.0) | **30.0** (10.0-90.0) | 25.0 (10.0-90.0) |",
    ]


def test_cells_of_other_samples_say_so_and_none_is_best() -> None:
    more = [*SMALL, *run_of("full", "all", {"x": 0.8, "y": 0.8}, 9), *run_of("c", "0.1", {"x": 0.1, "y": 0.1}, 9)]
    table = Table("d", ["a", "b", "c"], {}, budgets=[0.1])
    assert body(table, more) == [
        "| full cache | 80.0 (10.0-90.0, n 10) |",
        "| full cache | 80.0 (10.0-90.0, n 18) |",
        "| a | 30.0 (10.0-90.0, n 10) |",
        "| b | 25.0 (10.0-90.0, n 10) |",
        "| c | 10.0 (10.0-90.0, n 18) |",
    ]
    with pytest.raises(ValueError, match="a table of tasks has cells of different samples"):
        Table("d", ["a", "c"], {}, budget=0.1).markdown(more)
    with pytest.raises(ValueError, match="lacks a full cache"):
        table.markdown([c for c in more if c.run_id != "full-all-9-plain"])


def test_what_must_not_stand_in_one_table() -> None:
    both = [
        *SMALL,
        *run_of("a", "0.1", {"x": 0.2, "y": 0.4}, 5, "other"),
        *run_of("full", "all", {"x": 1, "y": 1}, 5, "other"),
    ]
    with pytest.raises(ValueError, match="choose one by `where`"):
        Table("d", ["a"], {}, budgets=[0.1]).markdown(both)
    table = Table("d", ["a", "b"], {}, budgets=[0.1], where={"protocol": "other"})
    assert body(table, both) == ["| full cache | 100.0 (10.0-90.0) |", "| a | 30.0 (10.0-90.0) |"]
    with pytest.raises(ValueError, match="has none of the table's cells"):
        Table("d", ["z"], {}, budgets=[0.1]).markdown(SMALL)


def test_a_table_of_what_evicts_while_answering() -> None:
    """A row for each method and a column for each size; other sizes and the plain method are left out."""
    sizes = ("size64-every16", "size128-every16")
    cells = [
        *run_of("full", "all", {"a": 0.9, "b": 0.5}, 10),
        *run_of("snapkv", "1", {"a": 0.8, "b": 0.4}, 10),
        *run_of("snapkv size64-every16", "1", {"a": 0.2, "b": 0.1}, 10),
        *run_of("snapkv size128-every16", "1", {"a": 0.4, "b": 0.3}, 10),
        *run_of("keydiff size64-every16", "1", {"a": 0.3, "b": 0.2}, 10),
        *run_of("snapkv size64-every9", "1", {"a": 0.7, "b": 0.7}, 10),
    ]
    lines = Table("d", ["snapkv", "keydiff", "tova"], {}, budget=1, decodings=sizes).markdown(cells).splitlines()
    assert lines[:5] == [
        "| method | size64-every16 | size128-every16 |",
        "| --- | --- | --- |",
        "| full cache | 70.0 (10.0-90.0) | 70.0 (10.0-90.0) |",
        "| SnapKV | 15.0 (10.0-90.0) | 35.0 (10.0-90.0) |",
        "| KeyDiff | **25.0** (10.0-90.0) |  |",
    ]
    assert "kept 100%" in lines[-1]
    assert lines[-1].endswith("Not measured yet: TOVA.")
