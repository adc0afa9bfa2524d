"""benchmark=needle from the command line: what a line says, and that a stopped run goes on to the same."""

from __future__ import annotations

import json
from pathlib import Path

from evals.run.records import SampleRecord
from tests.as_typed import Command
from tests.cli.test_records import list_faults


def test_a_run_and_its_second_half(command: Command, model: Path, tmp_path: Path) -> None:
    wanted = ["model=hf", f"model.path={model}", f"runs={tmp_path}", "reference=null", "method=keydiff", "budget=0.2"]
    wanted += [
        "benchmark=needle",
        "benchmark.lengths=[900,1100]",
        "benchmark.depths=[0,100]",
        "limit=3",
        "batch_size=1",
    ]
    assert command(*wanted) == 0
    (path,) = tmp_path.glob("*/samples.jsonl")
    assert path.parent.name == (
        "random__keydiff__b0.2__needle__n3__s0__benchmark.depths=0,100__benchmark.lengths=900,1100__model.path="
        + path.parent.name[-8:]
    )
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["id"]: (line["task"], line["length"], line["depth"]) for line in whole} == {
        f"number_{n}-{i}": (f"number_{n}", n, i % 2) for n in (900, 1100) for i in range(3)
    }
    assert all(list_faults(line, SampleRecord) == [] and list(line["scores"]) == ["facts_found"] for line in whole)
    path.write_text("".join(json.dumps(line) + "\n" for line in whole[:2]))
    path.with_name("result.json").unlink()
    assert command(*wanted) == 0
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{**line, "times": 0} for line in again] == [{**line, "times": 0} for line in whole]


def test_a_length_that_the_model_does_not_take_is_one_line(
    command: Command, model: Path, tmp_path: Path, capsys
) -> None:
    wanted = ["model=hf", f"model.path={model}", f"runs={tmp_path}", "method=keydiff", "benchmark=needle"]
    assert command(*wanted, "benchmark.lengths=[900,9000]") == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        "run.py: benchmark.lengths: samples of 9000 tokens, the model takes 4096: leave those out"
    )
    assert list(tmp_path.iterdir()) == []
