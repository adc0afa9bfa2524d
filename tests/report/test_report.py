"""report.py: what it writes of finished runs, and whether its comparisons are right."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from scipy import stats

import report
from evals.differences import FEWEST, PAIRS_AT_ONCE, compare, compare_pairs
from evals.report.compare import compare_group, find_label
from evals.report.figures import choose_heads
from evals.report.runs import group_by_experiment, label, read_latencies, read_results
from evals.report.tables import format_difference, markdown_row
from evals.stats import holm
from evals.text import size
from tests.as_typed import process
from tests.report.finished_runs import DATA, write_evaluation, write_latency

RNG = np.random.default_rng(0)
HARD = RNG.random(40)
"""How hard each sample is: scores on the same samples go together, which is what pairing is for."""


def scores(level: float, noise: float = 0.02) -> dict[str, list[float]]:
    return {task: (level - 0.4 * HARD + noise * RNG.standard_normal(40)).tolist() for task in ("one", "two")}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """lukv is a little better than keydiff and much better than snapkv; both lukv are as good as the full cache."""
    write_evaluation(tmp_path, scores(0.9), "method=full")
    for budget in ("budget=0.1", "budget=0.2"):
        write_evaluation(tmp_path, scores(0.9), "method=lukv", "scorer=keydiff", budget)
        write_evaluation(tmp_path, scores(0.8), "method=lukv", "scorer=snapkv", budget)
        write_evaluation(tmp_path, scores(0.88), "method=keydiff", budget)
        write_evaluation(tmp_path, scores(0.5), "method=snapkv", budget)
    write_evaluation(tmp_path, scores(0.6), "method=snapkv", "budget=0.2", "scorer.window=16")
    write_latency(tmp_path, "snapkv", [128, 256, 512])
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_what_departs_from_the_default_has_a_label_of_its_own(runs: Path) -> None:
    labels = {label(r) for r in read_results(runs)}
    methods = {"full", "lukv", "lukv-snapkv", "keydiff", "snapkv"}
    assert labels == methods | {"snapkv scorer.window=16"}


def test_differences_are_those_of_a_paired_t_test() -> None:
    """Two tasks of equally many samples: the mean of tasks is the mean of samples, and 40 of them are nearly normal."""
    mine, other = ({t: dict(enumerate(v)) for t, v in scores(level, 0.05).items()} for level in (0.9, 0.88))
    found = compare(mine, other, "x")
    assert set(found) == {"one", "two", "mean"}
    for task in ("one", "two"):
        pairs = np.array(list(mine[task].values())), np.array(list(other[task].values()))
        test = stats.ttest_rel(*pairs)
        low, high = test.confidence_interval(0.95)
        assert found[task].mean == pytest.approx((pairs[0] - pairs[1]).mean())
        assert (found[task].low, found[task].high) == pytest.approx((low, high), abs=0.1 * (high - low))
        assert found[task].p == pytest.approx(test.pvalue, rel=0.35, abs=0.002)
    assert found["mean"].mean == pytest.approx((found["one"].mean + found["two"].mean) / 2)
    assert found["mean"].high - found["mean"].low < found["one"].high - found["one"].low
    swapped = compare(other, mine, "x")["mean"]
    assert (swapped.mean, swapped.p) == pytest.approx((-found["mean"].mean, found["mean"].p), rel=0.2)


def test_many_differences_are_each_what_it_is_alone() -> None:
    """More than are drawn together, with one of other samples among them."""
    levels = RNG.random(PAIRS_AT_ONCE + 3)
    pairs = [({t: dict(enumerate(v)) for t, v in scores(level).items()} for level in (0.9, x)) for x in levels]
    named = [(mine, other, f"x{i}") for i, (mine, other) in enumerate(pairs)]
    del named[3][0]["one"][7], named[3][1]["one"][7], named[9][0]["two"][7]
    found = compare_pairs(named)
    assert found[9] == {}
    assert found[3] != {}
    for i in (0, 3, 4, PAIRS_AT_ONCE - 1, PAIRS_AT_ONCE + 2):
        alone = compare(*named[i])
        assert set(found[i]) == set(alone) == {"one", "two", "mean"}
        for task, usual in alone.items():
            mine = found[i][task]
            assert mine.against == f"x{i}"
            assert (mine.mean, mine.low, mine.high, mine.p) == pytest.approx(
                (usual.mean, usual.low, usual.high, usual.p), abs=1e-12
            )


def test_other_samples_are_not_compared(runs: Path) -> None:
    write_evaluation(runs, {"one": [0.1] * 39, "two": [0.1] * 40}, "method=streaming", "budget=0.1")
    (group,) = group_by_experiment(read_results(runs)).values()
    compared = compare_group(group, find_label("lukv", group), runs)
    assert compared[f"tiny__streaming__b0.1__{DATA}"] == {"method": {}, "full": {}}


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_pairing_sees_what_intervals_do_not(runs: Path) -> None:
    (group,) = group_by_experiment(read_results(runs)).values()
    compared = compare_group(group, find_label("lukv", group), runs)
    near, far = (compared[f"tiny__{m}__b0.2__{DATA}"]["method"]["mean"] for m in ("keydiff", "snapkv"))
    assert near.against == far.against == "lukv"
    assert near.high < 0
    assert near.p < 0.05
    assert far.mean == pytest.approx(-0.4, abs=0.02)
    same = compared[f"tiny__lukv__b0.2__{DATA}"]
    assert set(same) == {"full"}
    assert same["full"]["mean"].p > 0.05
    assert compared[f"tiny__full__{DATA}"] == {}


def test_the_files(runs: Path) -> None:
    done = process("--runs", str(runs), program="report.py")
    assert done.returncode == 0, done.stderr
    assert "minus lukv" in done.stdout
    out = runs / "report"
    glance, table = (
        [line.split(" | ") for line in block.splitlines() if line.startswith("| ")]
        for block in (out / "report.md").read_text().split("\n\n")[2:4]
    )
    assert glance[0] == ["| method", "kept 10%", "kept 20% |"]
    assert [line[0] for line in glance[2:]][:3] == ["| full", "| lukv", "| keydiff"]
    assert glance[-1][0] == "| snapkv"
    assert [sum("**" in line[column] for line in glance) for column in (1, 2)] == [1, 1]
    assert next(line for line in glance if "window" in line[0])[1] == ""
    head, rows = table[0], table[2:]
    assert head[5:7] == ["minus lukv", "minus the full cache"]
    assert len(rows) == 10
    assert rows[0][0] == "| full"
    bold = {(r[0], r[1]) for r in rows if "**" in r[4]}
    assert len(bold) == 2
    assert {b[1] for b in bold} == {"0.1", "0.2"}
    for r in rows:
        if r[0].startswith("| snapkv"):
            assert r[5].startswith("-")
            assert "*" in r[5]
    lines = list(csv.DictReader((out / "scores.csv").open()))
    assert len(lines) == 10 * 3
    snapkv = next(x for x in lines if x["label"] == "snapkv" and x["task"] == "mean" and x["budget"] == "0.1")
    assert snapkv["against"] == "lukv"
    assert float(snapkv["difference_low"]) < float(snapkv["difference"]) < float(snapkv["difference_high"]) < 0
    assert float(snapkv["p"]) < 0.05
    assert {x["against"] for x in lines if x["method"] == "full"} == {""}
    pictures = {p.name for p in out.glob("*.png")}
    assert pictures == {f"tiny__{DATA}{kind}.png" for kind in ("", "__bytes", "__heads")} | {"latency-1.png"}
    for picture in pictures:
        assert f"]({picture})" in (out / "report.md").read_text()
        assert len(np.unique(imread(out / picture).reshape(-1, 4), axis=0)) > 20
    assert (out / "leaderboard.html").read_text().count("<figure>") == 4


def test_another_reference(runs: Path) -> None:
    done = process("--runs", str(runs), "--against", "keydiff", "--out", str(runs / "other"), program="report.py")
    assert done.returncode == 0, done.stderr
    assert "minus keydiff" in done.stdout
    done = process("--runs", str(runs), "--against", "adakv", program="report.py")
    assert done.returncode == 2
    assert done.stderr.startswith("report.py: --against adakv: no such run. There are keydiff, lukv")
    assert done.stderr.count("\n") == 1


def test_a_cell_of_any_text_is_one_cell() -> None:
    assert markdown_row(["a|b", "c\nd", ""]) == "| a\\|b | c d |  |"


@pytest.mark.parametrize("n", range(1, 8))
def test_few_samples_a_task_prove_nothing(n: int) -> None:
    """Resampled within its task a single sample never varies, and two or three vary too little: below six of each task
    no difference has an interval or a star, however many tasks there are."""
    alone = {f"task {t}": {str(i): 1.0 for i in range(n)} for t in range(15)}
    none = {task: dict.fromkeys(found, 0.0) for task, found in alone.items()}
    for difference in compare(alone, none, "x").values():
        assert difference.mean == 1
        assert (difference.p < 0.05, difference.low is not None) == (n >= FEWEST,) * 2
        assert format_difference(difference) == ("+100.0* (+100.0..+100.0)" if n >= FEWEST else "+100.0")


def test_latency_alone(tmp_path: Path) -> None:
    write_latency(tmp_path, "snapkv", [128, 256])
    ((name, rows),) = read_latencies(tmp_path).items()
    assert name == "tiny, batch 1, a processor"
    assert {(r["label"], r["context_tokens"]) for r in rows} == {
        (label, n) for label in ("snapkv b0.2", "full") for n in (128, 256)
    }
    done = process("--runs", str(tmp_path), program="report.py")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "latency-1.png").stat().st_size > 10_000


def test_heads_are_drawn_where_most_methods_were_run(runs: Path) -> None:
    (group,) = group_by_experiment(read_results(runs)).values()
    chosen, panels = choose_heads(group)
    assert chosen == "0.2"
    assert len(panels) == 5
    stored = json.loads((runs / f"tiny__lukv__b0.2__{DATA}" / "result.json").read_text())
    assert panels["LU-KV on KeyDiff"] == stored["budget"]["heads"]


def test_names_are_broken_between_their_words() -> None:
    from evals.plots import break_lines

    assert (
        break_lines("lukv-keydiff-budget_table_shuffled_in_layers", 28)
        == "lukv-keydiff-budget_table_\nshuffled_in_layers"
    )
    assert break_lines("short", 28) == "short"
    assert break_lines("a word, " * 3, 12) == "a word, a\nword, a\nword,"
    assert break_lines("x" * 40 + " y", 28) == "x" * 40 + "\ny"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--agianst lukv", "Did you mean '--against'?"),
        ("score --predictions x --protocl kvpress", "Did you mean '--protocol'?"),
        ("scroe", "choose from"),
        ("score", "required: --predictions"),
    ],
)
def test_a_typo_is_one_line(
    options: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report.py", *options.split()])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.startswith("report.py: ")
    assert line.count("\n") == 1


def test_sizes_have_the_unit_that_fits() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1023 * 2**10, 2**20, 1.5 * 2**30, 5000 * 2**40)] == [
        *("0 B", "1023 B", "1.00 KiB", "1023.00 KiB", "1.00 MiB", "1.50 GiB", "5000.00 TiB"),
    ]
