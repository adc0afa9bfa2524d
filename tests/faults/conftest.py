"""run.py as a user types it, on random weights; what every refusal must look like; what a run leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.as_typed import Command

Refuses = Callable[..., str]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def question(number: int, words: int = 60) -> dict[str, Any]:
    """A question about a context of about 6 * words characters: the random model's tokens."""
    context = f"Note {number}. " + " ".join(f"w{(number * 7 + i) % 89:02}xy" for i in range(words))
    return {"context": context, "question": f"Which {number}?", "answers": [f"w{number}"], "max_new_tokens": 4}


@pytest.fixture
def short(model: Path, tmp_path: Path) -> list[str]:
    """Settings of a run of six short questions, a second of work."""
    data = jsonl(tmp_path / "questions.jsonl", [question(i) for i in range(6)])
    return [
        *("model=hf", f"model.path={model}", "model.name=random", f"runs={tmp_path}/runs"),
        *("benchmark=jsonl", f"benchmark.data={data}", "reference=null", "batch_size=2"),
    ]


@pytest.fixture
def refuses(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuses:
    """refuses(2, "says", "method=...", ...): exit code, one line that says it, no traceback, no result. -> the line"""

    def check(code: int, says: str, *args: str) -> str:
        capsys.readouterr()
        assert command(*args) == code, capsys.readouterr()
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not progress(line)]
        assert len(said) == 1, err
        assert said[0].startswith("run.py: ")
        assert says in said[0], said[0]
        assert "Traceback" not in out + err
        assert len(said[0]) < 700, said[0]
        assert not list(tmp_path.rglob("result.json"))
        return said[0]

    return check


def progress(line: str) -> bool:
    """What a run says of its way: its name, "6 samples", "2/6 samples, 1 s, about 2 s left", "loading it ..."."""
    return re.match(r"[^ ]+__[^ ]+$|[^ ]+__[^ ]+, \d+ runs$|\d+(/\d+)? samples|.* \.\.\.$", line) is not None


def lines(folder: Path) -> list[dict[str, Any]]:
    """samples.jsonl by id, without the times: what must be the same whatever happened on the way."""
    found = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted(({k: v for k, v in line.items() if k != "times"} for line in found), key=lambda line: line["id"])


def only(folder: Path) -> Path:
    """The one run folder there is."""
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found
