"""job=calibrate as a user types it, and method=lukv with the table that it made."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from lukv.budgets.table import BudgetTable

SMALL = ["calibration.benchmark.length=1200", "calibration.benchmark.tasks=[niah_single_1]", "calibration.contexts=2"]


@pytest.fixture
def calibration(settings, tmp_path):
    tables = f"model.tables={tmp_path / 'random' / 'tables'}"
    return [s for s in settings if not s.startswith(("benchmark", "limit"))], [tables, *SMALL, "job.oracle.horizon=3"]


def planned(said: str) -> tuple[str, str, str]:
    """Scorer, model folder and tables of the command that a message gives, as run.py takes it."""
    from evals.run import cli

    [found] = cli.plan(shlex.split(said.split("`")[1])[2:]).planned
    run = found.run
    assert run["job"]["save"]
    return run["scorer"]["name"], run["model"]["path"], run["model"]["tables"]


def whose(where: list[str]) -> list[str]:
    return [next(s for s in where if s.startswith(key)).removeprefix(key) for key in ("model.path=", "model.tables=")]


def test_a_table_is_made_saved_and_used(command, settings, calibration, tmp_path, capsys):
    where, small = calibration
    tables = next(s for s in small if s.startswith("model.tables"))
    assert command("method=lukv", tables, *settings) == 2
    assert planned(capsys.readouterr().err) == ("keydiff", *whose([*where, *small]))
    assert command("job=calibrate", *where, *small) == 0
    printed = capsys.readouterr().out
    assert "2 samples of" in printed
    assert "expected loss" in printed
    assert "samples' own: mean" in printed
    assert not (tmp_path / "random" / "tables").exists()
    assert command("job=calibrate", "job.save=true", *where, *small) == 0
    assert "already done" in capsys.readouterr().out
    table = BudgetTable.load(tmp_path / "random" / "tables" / "keydiff.safetensors")
    assert table.kept.shape == (99, 2, 2)
    assert table.metadata["data"]["name"] == "ruler-1200"
    assert table.metadata["oracle"]["horizon"] == 3
    assert command("method=lukv", tables, *settings) == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*lukv*/result.json")]
    share = next(r["budget"]["kept_share"] for r in results if "budget" in r)
    assert share == pytest.approx(0.2, abs=1e-3)


@pytest.mark.slow
def test_one_pass_serves_many_scorers(command, calibration, tmp_path):
    where, small = calibration
    assert command("job=calibrate", "job.scorers=[keydiff,snapkv,random]", "job.save=true", *where, *small) == 0
    assert command("job=calibrate", "scorer=snapkv", *where, *small) == 0
    (alone,) = tmp_path.glob("random__snapkv__*/tables/snapkv.safetensors")
    together = BudgetTable.load(tmp_path / "random" / "tables" / "snapkv.safetensors")
    np.testing.assert_array_equal(together.kept, BudgetTable.load(alone).kept)
    made = sorted(path.name for path in (tmp_path / "random" / "tables").iterdir())
    assert made == [
        f"{s}{kind}.safetensors" for s in ("keydiff", "random", "snapkv") for kind in (".curve", "", ".threshold")
    ]


def test_one_command_fits_the_probe_and_makes_its_tables(command, settings, calibration, tmp_path, capsys):
    where, small = calibration
    tables = next(s for s in small if s.startswith("model.tables"))
    assert command("method=lukv_plus", tables, *settings) == 2
    assert planned(capsys.readouterr().err) == ("utility_probe", *whose([*where, *small]))
    assert command("job=calibrate", "scorer=utility_probe", "job.save=true", *where, *small) == 0
    made = sorted(path.name for path in (tmp_path / "random" / "tables").iterdir())
    assert made == [f"utility_probe{kind}safetensors" for kind in (".curve.", ".probe.", ".", ".threshold.")]
    capsys.readouterr()
    assert command("job=calibrate", "scorer=utility_probe", *where, *small) == 0
    assert "already done" in capsys.readouterr().out
    for method in (["method=lukv_plus"], ["method=lukv", "scorer=utility_probe"], ["method=lukv", "scorer=keydiff"]):
        code = command(*method, tables, "reference=null", *settings)
        assert code == (2 if "scorer=keydiff" in method else 0)
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*lukv*/result.json")]
    assert [r["budget"]["kept_share"] for r in results] == [pytest.approx(0.2, abs=1e-3)] * 2


def test_calibration_without_questions(command, calibration, tmp_path):
    where, small = calibration
    source = [s.replace("benchmark.", "benchmark.source.") for s in small if s.startswith("calibration.b")]
    rest = ["calibration.contexts=1", "calibration.benchmark.chunk=300", small[0]]
    assert command("job=calibrate", "calibration=reconstruct", *source, *rest, *where) == 0
    (made,) = tmp_path.glob("random__*/tables/keydiff.safetensors")
    about = BudgetTable.load(made).metadata
    assert about["oracle"]["continuation"] == "reference"
    assert about["samples"] == -(-about["mean_tokens"] // 300)  # one question a chunk (and the template is a chunk's)
    assert about["data"]["name"] == "reconstruct-1200"


@pytest.mark.parametrize("continuation", ["sampled", "reference"])
def test_a_file_of_ones_own_by_its_path(command, calibration, tmp_path, continuation):
    where, small = calibration
    rows = [{"context": "red is 5. " * 9 + str(i), "question": "red?", "answers": ["5"]} for i in range(6)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = [s for s in small if not s.startswith("calibration")]
    rest = [f"job.oracle.continuation={continuation}", "job.oracle.question_rows=true"]
    assert command("job=calibrate", f"calibration=file:{file}", *rest, *where, *settings) == 0
    (made,) = tmp_path.glob("random__*/tables/keydiff.safetensors")
    table = BudgetTable.load(made)
    assert table.metadata["samples"] == 6
    assert table.metadata["oracle"]["continuation"] == continuation
    for figure in ("keydiff_budgets.png", "keydiff_curves.png"):
        assert made.with_name(figure).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=full"], "name one"),
        (["job.scorers=[keydif]"], "no scorer named 'keydif'"),
        (["job.oracle.continuation=beam"], "greedy, sampled, reference"),
        (["job.aggregation=median"], "budgets, losses"),
        (["calibration=file"], "calibration.benchmark.data"),
        (["calibration=file:/no/such.jsonl"], "/no/such.jsonl"),
        (["calibration=file", "calibration.benchmark.data=/no/such.jsonl"], "/no/such.jsonl"),
    ],
)
def test_impossible_calibrations_are_one_line(command, settings, tmp_path, capsys, arguments, message):
    where = [s for s in settings if not s.startswith(("benchmark", "limit"))]
    small = [] if any(a.startswith("calibration=file") for a in arguments) else SMALL
    assert command("job=calibrate", *where, *small, *arguments) == 2
    captured = capsys.readouterr().err.strip()
    assert message in captured
    assert "Traceback" not in captured
    assert not list(tmp_path.glob("*/result.json"))
