"""A run of each published set through the command line: its folder, its tasks, the page of its facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.as_typed import Command
from tests.evals.test_published import PROMPTS, place, write

TASKS = {
    "longbench_v2": "longbench_v2",
    "infinitebench": "passkey",
    "loogle": "shortdep_cloze",
    "zeroscrolls": "quality",
}


@pytest.mark.parametrize("benchmark", TASKS)
def test_a_run(benchmark: str, command: Command, settings: list[str], tmp_path: Path) -> None:
    task = TASKS[benchmark]
    (case,) = [case for case in PROMPTS if case["task"] == task]
    output = {"output": "(B) Oslo"} if benchmark == "zeroscrolls" else {}
    write(place(tmp_path / "data", benchmark, task), [{**case["row"], **output}])
    kept = [setting for setting in settings if not setting.startswith(("benchmark", "runs="))]
    given = [f"benchmark={benchmark}", f"benchmark.data={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}"]
    assert command(*kept, *given, "method=keydiff", "budget=0.5", "reference=null") == 0
    (folder,) = (tmp_path / "runs").glob("*__keydiff__*")
    assert f"__{benchmark}__" in folder.name
    result = json.loads((folder / "result.json").read_text())
    assert (result["benchmark"], list(result["tasks"])) == (benchmark, [task])
    facts = json.loads((folder / "run.json").read_text())["benchmark"]
    assert (facts["protocol"], facts["tasks"]) == ("kvpress", {task: 1})
    (line,) = [json.loads(text) for text in (folder / "samples.jsonl").read_text().splitlines()]
    assert line["references"]
    assert all(0 <= score <= 1 for score in line["scores"].values())
