"""calibration=mix as a user types it, and code and prose that go on as a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lukv.budgets.table import BudgetTable

PARTS = "calibration.benchmark.parts"
SMALL = [
    *("calibration.contexts=4", "calibration.horizon=3", f"{PARTS}.continuation.share=0.5"),
    *(f"{PARTS}.ruler.benchmark.length=1200", f"{PARTS}.ruler.benchmark.tasks=[niah_single_1]"),
    *(f"{PARTS}.continuation.benchmark.length=60", f"{PARTS}.continuation.benchmark.max_new_tokens=4"),
]


@pytest.fixture
def where(settings: list[str]) -> list[str]:
    return [s for s in settings if not s.startswith(("benchmark", "limit"))]


def write_prose(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "prose.txt"
    path.write_text("\n".join(f"Line {i} says that {i * 31 % 997} geese flew over the lake." for i in range(900)))
    return path


def test_a_table_knows_its_parts(command, where, tmp_path):
    prose = write_prose(tmp_path / "here")
    arguments = ["job=calibrate", "calibration=mix", *SMALL, *where]
    assert command(*arguments, f"{PARTS}.continuation.benchmark.prose={prose}") == 0
    (made,) = tmp_path.glob("random__keydiff__calibrate-mix__*/tables/keydiff.safetensors")
    about = BudgetTable.load(made).metadata
    assert about["samples"] == 4
    parts = about["data"]["parts"]
    assert {name: (part["share"], part["contexts"]) for name, part in parts.items()} == {
        "ruler": (0.5, 2),
        "continuation": (0.5, 2),
    }
    assert set(parts["continuation"]["texts"]) == {"code", "prose"}
    assert str(tmp_path) not in json.dumps(about["data"])


def test_texts_count_by_their_content(where: list[str], tmp_path: Path) -> None:
    """The same text at another place is the same calibration; another text, share or seed is another one."""
    from evals.run import cli

    def identify(*arguments: str) -> tuple[str, str]:
        [planned] = cli.plan(["job=calibrate", "calibration=mix", *SMALL, *where, *arguments]).planned
        return planned.run.id, planned.run.hash

    here, there = write_prose(tmp_path / "here"), write_prose(tmp_path / "there")
    prose, code = f"{PARTS}.continuation.benchmark.prose", f"{PARTS}.continuation.benchmark.code"
    first = identify(f"{prose}={here}")
    assert identify(f"{prose}={there}") == first
    assert identify(f"{code}={here.parent}") == identify(f"{code}={there.parent}")
    there.write_text(there.read_text() + "And one line more.")
    others = [
        *(identify(), identify(f"{prose}={there}")),
        *(identify(f"{PARTS}.continuation.{name}") for name in ("share=0.4", "benchmark.seed=2")),
    ]
    assert len({first, *others}) == len({name for name, _ in (first, *others)}) == 5


def test_only_text_that_goes_on_is_without_the_chat_template(model: Path) -> None:
    """What the model is given: the template around RULER's context, BOS and the bare text otherwise."""
    from dataclasses import replace

    from evals.continuation import Continuation
    from evals.jobs.prompts import tokenize_sample
    from lukv.model import load

    loaded = load(str(model))
    if not loaded.tokenizer.chat_template:
        loaded.tokenizer.chat_template = "<<{{ messages[0]['content'] }}>>"
    (task,) = Continuation(length=60, tasks="code").tasks(loaded.tokenizer, 1)
    (sample,) = task.samples
    context, question = tokenize_sample(sample, loaded)
    text = loaded.tokenizer.decode([*context, *question])
    assert "<<" not in text
    assert ">>" not in text
    whole = f"{loaded.tokenizer.bos_token}{sample.context}{sample.question}"
    assert [*context, *question] == loaded.tokenizer.encode(whole, add_special_tokens=False)
    assert tokenize_sample(replace(sample, chat=True), loaded) != (context, question)


def test_going_on_as_a_benchmark(command, where, tmp_path):
    small = ["benchmark=continuation", "benchmark.length=60", "benchmark.max_new_tokens=4", "limit=2"]
    assert command("method=keydiff", "budget=0.5", *small, *where) == 0
    (path,) = tmp_path.glob("random__keydiff*/result.json")
    result = json.loads(path.read_text())
    assert {name: task["n"] for name, task in result["tasks"].items()} == {"code": 2, "prose": 2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([f"{PARTS}.continuation.share=1.5"], "together they must be 1"),
        (["calibration.contexts=null"], "calibration.contexts=null"),
        ([f"{PARTS}.continuation.benchmark.seed=7"], "benchmark.seed=7: choose one of 0 to 3"),
        ([f"{PARTS}.continuation.benchmark.prose=/no/such.txt"], "benchmark.prose=/no/such.txt is missing"),
        ([f"+{PARTS}.mine.share=0.1"], "parts.mine must have `benchmark` and `share`"),
        ([f"{PARTS}.continuation.benchmark.length=300000"], "choose a smaller benchmark.length"),
    ],
)
def test_impossible_mixtures_are_one_line(command, where, tmp_path, capsys, arguments, says):
    assert command("job=calibrate", "calibration=mix", *where, *SMALL, *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*/result.json"))
