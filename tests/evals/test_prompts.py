"""A benchmark as token ids: made once for runs that share it, and never of a file that has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.jobs.prompts import TokenizedSample, describe_files, hash_prompts, tokenize_benchmark
from evals.task import Sample, Task

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


def hashed(contexts: tuple[int, ...] = (1, 2), question: int = 3, tokens: int = 4, version: int = 1) -> str:
    """The hashes of a task of as many samples, whose contexts and questions have one token."""
    task = Task("task", version, "", [], lambda prediction, sample: {"x": 0.0})
    sample = Sample("x", "task", "", "", ("x",), tokens)
    return str(hash_prompts([TokenizedSample(sample, task, (context,), (question,)) for context in contexts]))


def test_the_hash_of_a_tasks_prompts_is_of_all_that_the_model_is_given() -> None:
    assert hashed() == hashed()
    others = [hashed(contexts=(2, 1)), hashed(contexts=(1,)), hashed(question=5), hashed(tokens=5), hashed(version=2)]
    assert len({hashed(), *others}) == 6
