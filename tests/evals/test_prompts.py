"""A benchmark as token ids: made once for runs that share it, and never of a file that has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.jobs.benchmark import describe_files, tokenize_benchmark
from evals.jobs.prompts import TokenizedSample, hash_prompts
from evals.ruler.benchmark import Ruler
from evals.run.instantiate import InputError
from evals.task import Sample, Task
from lukv.model import load

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


def test_special_tokens_are_what_the_model_settings_say(tmp_path: Path) -> None:
    """The setting is one of the model's, so it is part of a run's identity; the prompts' hash tells it, too."""
    path = tmp_path / "mine.jsonl"
    settings = json.dumps({"_target_": "evals.jsonl.Jsonl", "data": str(path)})
    hashes = {}
    for name in ("Ann", "<|end|>"):
        write(path, name)
        for kind in ("text", "control"):
            model = json.dumps({**json.loads(MODEL), "special_tokens": kind})
            (prompt,), _ = tokenize_benchmark(model, settings, None)
            hashes[name, kind] = hash_prompts([prompt])
            assert (2 in prompt.context) == (name == "<|end|>" and kind == "control")
    assert hashes["Ann", "text"] == hashes["Ann", "control"]
    assert hashes["<|end|>", "text"] != hashes["<|end|>", "control"]


def test_a_prompt_that_cannot_be_asked_names_its_sample(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write(path, "\ufdd0")
    settings = json.dumps({"_target_": "evals.jsonl.Jsonl", "data": str(path)})
    with pytest.raises(InputError, match=r"mine-1: the text holds the noncharacter U\+FDD0"):
        tokenize_benchmark(MODEL, settings, None)


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


def test_prompts_without_special_tokens_are_what_the_tokenizer_makes_of_them() -> None:
    """RULER's, in the tokenizer's own words: the rendered template up to the context's end, then the rest."""
    tiny = load("models/tiny", device="cpu")
    encode = tiny.tokenizer.encode
    for task in Ruler(length=512).tasks(tiny.tokenizer, 2):
        for sample in task.samples:
            context, after = tiny.prompt_ids(sample.context, sample.question, sample.answer_prefix)
            assert context == encode(f"<|begin|><|user|>{sample.context}", add_special_tokens=False)
            rest = f"{sample.question}<|end|><|assistant|>{sample.answer_prefix}"
            assert after == encode(rest, add_special_tokens=False)
