"""What run.json calls `repeat` asks for the same run, whatever sweep or experiment it came from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from evals.run import cli
from evals.run.overrides import normalize_arguments
from evals.run.repeat import write_command
from evals.run.settings import Run
from lukv.conf import ROOT
from tests.as_typed import Command


def plan(*args: str) -> list[Run]:
    return [p.run for p in cli.plan(normalize_arguments(list(args))).planned]


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "-m method=snapkv,full,pyramidkv_original budget=0.1,0.25",
        "method=lukv scorer=snapkv allocator=uniform seed=3 limit=7",
        "method=adakv scorer=keydiff budget_tokens=128 attention=loop",
        "-m method=full,keydiff cache_dtype=auto,int8 budget_bytes=0.1",
        "method=snapkv scorer.window=16 protection=equal benchmark.length=512 benchmark.tasks=[vt,niah_single_1]",
        "benchmark.question_aware=true ++benchmark.ruler_version=2025",
        "benchmark=jsonl \"benchmark.data='a file, with = and [brackets].jsonl'\" method=random",
        "-m method=keydiff budget=0.1,1 decoding=size decoding.tokens=1024,200",
        "method=keydiff decoding=share decoding.every=9",
        "model=hf model.path=models/tiny model.name=mine method=keydiff",
        "method=lukv allocator.path=models/tiny/tables/snapkv.safetensors",
        "experiment=embedded_controls",
    ],
)
def test_the_command_asks_for_the_same_run(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for run in plan(*shlex.split(typed)):
        program, file, *words = shlex.split(write_command(run))
        assert (program, file) == ("python", "run.py")
        (again,) = plan(*words)
        assert again.hash == run.hash
        assert (again["model"]["name"], again.label, again.id) == (run["model"]["name"], run.label, run.id)


def test_a_run_records_question_and_kept_tokens(command: Command, settings: list[str], tmp_path: Path) -> None:
    """record_kept=1: one sample of each task says which of its tokens stayed; as many as its counts say."""
    assert command(*settings, "method=snapkv", "budget=0.3", "limit=2", "record_kept=1") == 0
    (folder,) = (p.parent for p in tmp_path.glob("*snapkv*/result.json"))
    assert "method=snapkv" in json.loads((folder / "run.json").read_text())["repeat"]
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    told = [line for line in lines if "kept_tokens" in line]
    assert len(told) == len({line["task"] for line in lines}) < len(lines)
    assert all(line["question"] for line in lines)
    for line in told:
        kept = line["kept_tokens"]
        assert len(kept["tokens"]) == line["context_tokens"]
        heads = len(line["kept"][0])
        for name, digits in kept["layers"].items():
            first, _, last = name.partition("-")
            layers = line["kept"][int(first) : int(last or first) + 1]
            share = sum(map(int, digits)) / 9 / len(digits)
            assert share == pytest.approx(sum(map(sum, layers)) / (len(layers) * heads * len(digits)), abs=0.05)
        assert {digits[-1] for digits in kept["layers"].values()} == {"9"}  # what is recent stays everywhere
        assert 0 <= line["answer_depth"] <= 1
