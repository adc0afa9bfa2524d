"""A run from end to end on random weights: the folder's contract, resuming, refusing, sweeping, reporting."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.run.fingerprint import fingerprint
from tests.as_typed import ROOT, Command, process

RUN = "random__snapkv__b0.2__ruler-1200__n2__s0__benchmark.tasks=niah_single_1,niah_multikey_2"


@pytest.fixture
def run_id(model: Path) -> str:
    """Of the run in `finished`: a model without a yaml of its own stands with its content."""
    return f"{RUN}__model.path={fingerprint(model, model=True)[:8]}"


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def same(a: list[dict], b: list[dict]) -> bool:
    """Equal but for the times."""
    return [{**x, "times": 0} for x in a] == [{**x, "times": 0} for x in b]


@pytest.fixture
def finished(
    command: Command, settings: list[str], run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    assert command(*settings, "method=snapkv", "budget=0.2") == 0
    return tmp_path / run_id


def test_folder_and_table(
    finished: Path, command: Command, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = capsys.readouterr().out
    for word in (
        "niah_single_1",
        "95% interval",
        "full",
        "kept share",
        "cache bytes",
        "time to first token",
        "time per token",
    ):
        assert word in shown
    full = finished.name.replace("snapkv__b0.2", "full")
    assert {p.name for p in finished.parent.iterdir()} == {finished.name, full}
    result = json.loads((finished / "result.json").read_text())
    assert result["status"] == "done"
    assert {name: task["n"] for name, task in result["tasks"].items()} == {"niah_single_1": 2, "niah_multikey_2": 2}
    samples = lines(finished)
    assert len({s["id"] for s in samples}) == 4
    for s in samples:  # the budget is exact: round(0.2 * tokens * heads) in each layer
        heads = len(s["kept"][0])
        assert [sum(layer) for layer in s["kept"]] == [int(0.2 * s["context_tokens"] * heads + 0.5)] * len(s["kept"])
        assert s["cache_bytes"] == sum(map(sum, s["kept"])) * 2 * 8 * 4  # key and value of 8 float32 numbers
        assert s["full_cache_bytes"] == s["context_tokens"] * heads * len(s["kept"]) * 2 * 8 * 4
    assert result["budget"]["kept_share"] == pytest.approx(0.2, abs=1e-3)
    assert result["time"]["ttft_s"] >= result["time"]["prefill_s"] > 0
    about = json.loads((finished / "run.json").read_text())
    assert set(about["prompts"]) == {"niah_single_1 v1", "niah_multikey_2 v1"}
    assert about["config_hash"] == result["config_hash"]
    assert about["benchmark"]
    assert about["attention"]
    before = (finished / "result.json").read_bytes(), (finished / "samples.jsonl").read_bytes()
    assert command(*settings, "method=snapkv", "budget=0.2") == 0
    assert "already done" in capsys.readouterr().out
    assert before == ((finished / "result.json").read_bytes(), (finished / "samples.jsonl").read_bytes())


def test_goes_on_after_a_crash(finished: Path, command: Command, settings: list[str]) -> None:
    """Two samples done and a third torn in the middle of its line: the rest is made, nothing twice."""
    whole = lines(finished)
    text = (finished / "samples.jsonl").read_text().splitlines(keepends=True)
    (finished / "result.json").unlink()
    (finished / "samples.jsonl").write_text(text[0] + text[1] + text[2][:40])
    assert command(*settings, "method=snapkv", "budget=0.2") == 0
    assert same(lines(finished), whole)
    assert len(json.loads((finished / "run.json").read_text())["resumed"]) == 1


def test_batches_do_not_change_answers(finished: Path, command: Command, settings: list[str], tmp_path: Path) -> None:
    alone = [s for s in settings if not s.startswith("runs=")] + [
        f"runs={tmp_path}/alone",
        "model.dtype=float64",
        "batch_size=1",
    ]
    together = [*alone[:-3], f"runs={tmp_path}/together", "model.dtype=float64", "batch_size=4"]
    for args in (alone, together):
        assert command(*args, "method=snapkv") == 0
    name = finished.name.replace("__model.path=", "__model.dtype=float64__model.path=")
    a, b = (sorted(lines(tmp_path / folder / name), key=lambda s: s["id"]) for folder in ("alone", "together"))
    assert [(s["prediction"], s["kept"], s["cache_bytes"]) for s in a] == [
        (s["prediction"], s["kept"], s["cache_bytes"]) for s in b
    ]


def test_questions_of_a_context_may_have_answers_of_different_length(
    command: Command, model: Path, tmp_path: Path
) -> None:
    """Contexts with as many questions, but not as many of each length: every one is asked, once."""
    data, asked = tmp_path / "data.jsonl", {"a": (5, 9), "bb": (5, 5), "c": (9, 5, 9)}
    rows = [
        {
            "id": f"{context}{i}",
            "context": context * 40,
            "question": "?" * (i + 1),
            "answers": ["x"],
            "max_new_tokens": n,
        }
        for context, lengths in asked.items()
        for i, n in enumerate(lengths)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    told = [f"benchmark.data={data}", f"model.path={model}", f"runs={tmp_path}", "method=snapkv", "reference=null"]
    assert command("model=hf", "benchmark=jsonl", *told) == 0
    (run,) = tmp_path.glob("*/samples.jsonl")
    assert sorted(line["id"] for line in lines(run.parent)) == sorted(f"data-{row['id']}" for row in rows)


@pytest.mark.parametrize(
    ("file", "was", "other"),
    [("config.yaml", "window: 32", "window: 16"), ("run.json", '"model.path": "', '"model.path": "0')],
)
def test_a_name_that_another_experiment_has_gets_a_hash(
    file: str, was: str, other: str, finished: Path, command: Command, settings: list[str]
) -> None:
    """Its valid result stays as it is, and the new run is computed: again, it is done."""
    text = (finished / file).read_text()
    assert was in text
    (finished / file).write_text(text.replace(was, other))
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    for _ in range(2):
        assert command(*settings, "method=snapkv", "budget=0.2") == 0
    names = {path.name for path in finished.parent.glob("*__snapkv__*")}
    (new,) = names - {finished.name}
    assert new.startswith(f"{finished.name}__")
    assert json.loads((finished.parent / new / "result.json").read_text())["run_id"] == new
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_prompts_that_have_changed_since_are_refused(
    finished: Path, command: Command, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped does not go on with other prompts, whatever made them other: nothing is written."""
    (finished / "result.json").unlink()
    made = (finished / "samples.jsonl").read_text().splitlines(keepends=True)
    (finished / "samples.jsonl").write_text(made[0])
    about = json.loads((finished / "run.json").read_text())
    about["prompts"]["niah_single_1 v1"] = "0" * 16
    (finished / "run.json").write_text(json.dumps(about))
    assert command(*settings, "method=snapkv", "budget=0.2") == 2
    error = capsys.readouterr().err
    assert "the prompts have changed" in error
    assert "niah_single_1" in error
    assert (finished / "samples.jsonl").read_text() == made[0]
    assert json.loads((finished / "run.json").read_text()) == about


def test_two_processes_on_one_folder(
    finished: Path, command: Command, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    (finished / "result.json").unlink()
    with (finished / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command(*settings, "method=snapkv", "budget=0.2") == 1
    assert "is being written by process" in capsys.readouterr().err
    assert command(*settings, "method=snapkv", "budget=0.2") == 0  # the lock went with its owner


def test_sweep_report_and_failure(
    finished: Path, command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done before, new, and impossible (no budget table for this model) in one sweep."""
    code = command("-m", *settings, "method=snapkv,keydiff,lukv,full", "budget=0.2,0.5")
    out, err = capsys.readouterr()
    assert code == 2
    assert "7 runs: 3 done, 2 skipped, 2 failed" in out
    assert "job=calibrate" in err
    assert out.count(" and 1 more  failed  no budget table at ") == 1  # one cause, one line
    assert command("-m", *settings, "method=snapkv,keydiff", "budget=0.2,0.5") == 0
    assert "4 runs: 0 done, 4 skipped, 0 failed" in capsys.readouterr().out

    done = process("--runs", str(tmp_path), program="report.py")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "report" / "scores.csv").open()))
    assert len(rows) == 5 * 3  # five runs, two tasks and their mean
    assert {(r["method"], r["budget"]) for r in rows} == {
        ("full", ""), ("snapkv", "0.2"), ("snapkv", "0.5"), ("keydiff", "0.2"), ("keydiff", "0.5"),
    }  # fmt: skip
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.count("\n## ") == 1
    assert "| full | all | 1.000 |" in page
    pictures = list((tmp_path / "report").glob("*.png"))
    assert len(pictures) == 3
    assert min(picture.stat().st_size for picture in pictures) > 10_000


def test_report_without_runs(tmp_path: Path) -> None:
    done = process("--runs", str(tmp_path), program="report.py")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_other_jobs(command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*settings, "method=keydiff", "job=info") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["versions"]["torch"]
    assert about["attention"]["loop"] == "runs here"
    assert about["attention"]["auto"] in ("is native here", "is loop here")
    assert list(tmp_path.iterdir()) == []
    quick = ["job=latency", "job.lengths=[64,128]", "job.repeats=1", "job.new_tokens=3"]
    assert command(*settings, "method=keydiff", *quick) == 0
    (folder,) = tmp_path.iterdir()
    rows = json.loads((folder / "result.json").read_text())["rows"]
    assert [(r["method"], r["context_tokens"]) for r in rows] == [
        ("keydiff", 64),
        ("full", 64),
        ("keydiff", 128),
        ("full", 128),
    ]
    assert rows[0]["cache_bytes"] == 2 * 26 * 2 * 8 * 4  # two layers of round(0.2 * 64 * 2) entries
    assert command(*settings, "method=keydiff", "job=latency", "job.lengths=[5000]") == 2


@pytest.mark.slow
def test_killed_at_any_moment(settings: list[str], run_id: str, tmp_path: Path, command: Command) -> None:
    """kill -9 again and again, at later and later moments: at last the samples are those of a run left alone."""
    args = [*settings, "method=snapkv", "batch_size=1", "limit=6"]
    killed = 0
    for delay in range(4, 60, 2):
        p = subprocess.Popen(
            [sys.executable, "run.py", *args], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = p.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            os.kill(p.pid, signal.SIGKILL)
            p.wait()
            killed += 1
            continue
        assert code == 0
        break
    assert killed
    name = run_id.replace("n2", "n6")
    alone = [s for s in args if not s.startswith("runs=")] + [f"runs={tmp_path}/alone"]
    assert command(*alone) == 0
    assert same(lines(tmp_path / name), lines(tmp_path / "alone" / name))


@pytest.mark.slow
def test_a_sweep_killed_twice(settings: list[str], tmp_path: Path, command: Command) -> None:
    """kill -9 as soon as the first run of the sweep has samples, and again once there are more: the same command then
    ends with what a sweep left alone has."""
    sweep = ["method=snapkv,keydiff", "budget=0.2,0.5", "batch_size=1", "limit=6"]
    begun = 0
    for _ in range(2):
        p = subprocess.Popen(
            [sys.executable, "run.py", "-m", *settings, *sweep],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = begun
        while p.poll() is None and begun <= before + 2:
            begun = sum(len(f.read_bytes().splitlines()) for f in tmp_path.glob("*/samples.jsonl"))
            time.sleep(0.05)
        assert p.poll() is None, "the sweep was over before it could be killed"
        p.kill()
        p.wait()
        assert not all((f / "result.json").exists() for f in tmp_path.glob("random__*"))
    assert command("-m", *settings, *sweep) == 0
    alone = [s for s in settings if not s.startswith("runs=")] + [f"runs={tmp_path}/alone"]
    assert command("-m", *alone, *sweep) == 0
    names = {p.parent.name for p in tmp_path.glob("*/result.json")}
    assert names == {p.parent.name for p in tmp_path.glob("alone/*/result.json")}
    assert len(names) == 5
    for name in names:
        ours, theirs = (sorted(lines(f / name), key=lambda x: x["id"]) for f in (tmp_path, tmp_path / "alone"))
        assert len({x["id"] for x in ours}) == len(ours) == 12
        assert same(ours, theirs)


def test_one_task_with_or_without_brackets_is_one_run(
    command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [s for s in settings if not s.startswith("benchmark.tasks")]
    assert command(*short, "method=snapkv", "limit=1", "benchmark.tasks=[niah_single_1]") == 0
    made = sorted(path.name for path in tmp_path.iterdir())
    assert command(*short, "method=snapkv", "limit=1", "benchmark.tasks=niah_single_1") == 0
    assert "already done" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == made


def test_a_prompt_that_is_too_long_is_one_line(model: Path, tmp_path: Path) -> None:
    """As a process: transformers' own warning goes to the terminal, not to a test's capture."""
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"context": "a" * 5000, "question": "b", "answers": ["c"]}) + "\n")
    done = process("method=snapkv", f"model=hf:{model}", f"benchmark=jsonl:{data}", f"runs={tmp_path}/runs")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "takes 4096" in done.stderr
