"""A benchmark as token ids: made once for runs that share it, and never of a file that has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.jobs.prompts import describe_files, tokenize_benchmark

MODEL = json.dumps({"path": "models/tiny", "name": "tiny"})


def write(path: Path, name: str) -> None:
    path.write_text(json.dumps({"context": f"{name} lives in Oslo.", "question": "Who?", "answers": [name]}))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Also one of the same length, in the same second."""
    path = tmp_path / "mine.jsonl"
    settings = json.dumps({"_target_": "evals.jsonl.Jsonl", "data": str(path)})
    for name in ("Ann", "Bob"):
        write(path, name)
        (prompt,), facts = tokenize_benchmark(MODEL, settings, None)
        assert prompt.sample.references == (name,)
        assert tokenize_benchmark(MODEL, settings, None)[0][0] is prompt  # once for runs that share it
        assert facts["sha256"]


@pytest.mark.parametrize("nested", ["", "sub"])
def test_files_in_folders_count(nested: str, tmp_path: Path) -> None:
    folder = tmp_path / nested
    folder.mkdir(exist_ok=True)
    settings = {"source": {"data": str(tmp_path), "tasks": ["a", "b"], "length": 3, "none": None}}
    empty = describe_files(settings)
    write(folder / "qasper.jsonl", "Ann")
    one = describe_files(settings)
    assert one == describe_files(settings)
    write(folder / "qasper.jsonl", "Bob")
    assert len({empty, one, describe_files(settings)}) == 3
