"""RULER's samples against those of the original programs: hashes, published rows, golden samples, scores."""

from __future__ import annotations

import json
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from evals.ruler import generator as generator_module
from evals.ruler.benchmark import Ruler
from evals.ruler.generator import Generator, Prompt, Unfit
from evals.ruler.sources import Sources
from evals.ruler.split import split
from evals.ruler.suite import TASKS, TOKENS_TO_GENERATE
from evals.task import Sample, Tokenizer, count_tokens
from tests.conftest import SHARED
from tests.evals.conftest import golden, read_jsonl

HASHES = SHARED / "golden/ruler_2024_llama3_hashes.json"
ABSENT = [pytest.param(None, id="absent")]  # the fixture `shared` then skips the test or, in CI, fails it
CASES = json.loads(HASHES.read_text())["tasks"] if HASHES.is_file() else ABSENT
case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['task']}-{case['max_seq_length']}")


@pytest.fixture(scope="module")
def sources(shared: Path) -> Sources:
    return Sources(shared / "data/ruler")


def make(task: str, length: int, ruler_version: int, sources: Sources, tokenizer: Tokenizer) -> Generator:
    family = TASKS[task].family
    return TASKS[task].make(
        sources,
        name=task,
        limit=length,
        tokens_to_generate=TOKENS_TO_GENERATE[family],
        count_tokens=partial(count_tokens, tokenizer),
        ruler_version=ruler_version,
        seed=42,
    )


def digest(prompt: Prompt) -> str:
    content = json.dumps([prompt.text, list(prompt.answers), prompt.length], separators=(",", ":"))
    return sha256(content.encode()).hexdigest()[:16]


def equal(case: dict[str, Any], n: int, sources: Sources, tokenizer: Tokenizer) -> int:
    samples = make(case["task"], case["max_seq_length"], 2024, sources, tokenizer).samples()
    hashes = case["sample_hash16"][:n]
    return sum(digest(prompt) == expected for prompt, expected in zip(samples, hashes, strict=False))


@case
def test_first_samples_are_the_published_ones(case: dict[str, Any], sources: Sources, llama3: Tokenizer) -> None:
    assert equal(case, 8, sources, llama3) == 8


@pytest.mark.slow
@case
def test_all_samples_are_the_published_ones(case: dict[str, Any], sources: Sources, llama3: Tokenizer) -> None:
    equals = equal(case, case["n"], sources, llama3)
    print(f"\n{case['task']:16} {case['max_seq_length']:6} {equals} of {case['n']}")
    assert equals == case["n"]


def test_published_file_of_niah_multikey_3(shared: Path, sources: Sources, llama3: Tokenizer) -> None:
    published = list(read_jsonl(shared / "data/ruler/published/4096_niah_multikey_3.jsonl"))
    samples = make("niah_multikey_3", 4096, 2024, sources, llama3).samples()
    assert len(published) == 500
    for row, prompt in zip(published, samples, strict=False):
        assert (row["input"], row["outputs"], row["length"]) == (prompt.text, list(prompt.answers), prompt.length)


class OneWordLess(Random):
    """The golden run's process lost one word of the random numbers between seeding and the first sample."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.getrandbits(32)


def golden_samples() -> list[Any]:
    """(vintage, task, length) and its rows."""
    groups: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
    for row in golden("ruler_samples.jsonl") if (SHARED / "golden").is_dir() else ():
        if row["tokenizer"] == "tokenizer_bpe8k":
            groups.setdefault((int(row["vintage"][:4]), row["task"], row["max_seq_length"]), []).append(row)
    return list(groups.items()) or [pytest.param(None, None, id="absent")]


WITHOUT_CONTENT = {(2024, "niah_single_2", 512), (2024, "cwe", 512), (2024, "niah_multiquery", 1024)}
"""Where RULER falls to no haystack at all: only the needle, or a question without answers. Ours is an error."""


@pytest.mark.parametrize(("group", "rows"), golden_samples(), ids=lambda value: str(value)[:40])
def test_golden_samples_of_both_versions(
    group: tuple[int, str, int],
    rows: list[dict[str, Any]],
    sources: Sources,
    bpe8k: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generator_module, "Random", OneWordLess)
    ruler_version, task, length = group
    if group in WITHOUT_CONTENT:
        assert all(row["haystack_units"] == 0 for row in rows)
        with pytest.raises(Unfit, match="does not fit into"):
            make(task, length, ruler_version, sources, bpe8k).samples()
        return
    prompts = list(islice(make(task, length, ruler_version, sources, bpe8k).samples(), 3))
    for row in rows:
        prompt = prompts[row["sample"]]
        assert prompt.text == row["input"] + row.get("answer_prefix", "")
        assert list(prompt.answers) == row["outputs"]
        assert prompt.length == row["length"]
        if ruler_version == 2024:
            context, question, answer_prefix = split(prompt.text, TASKS[task].family)
            expected = row["kvpress_split"]
            assert (len(context), question, answer_prefix) == (
                expected["context_chars"],
                expected["question"],
                expected["answer_prefix"],
            )
            assert TOKENS_TO_GENERATE[TASKS[task].family] == expected["max_new_tokens"]


@pytest.mark.parametrize("case", golden("ruler_metrics.jsonl"), ids=lambda case: f"{case['task']}: {case['tag']}")
def test_golden_scores(case: dict[str, Any], shared: Path) -> None:
    score = Ruler().metric(TASKS[case["task"]].family)
    scores = [
        score(prediction, Sample("x", case["task"], "", "", tuple(references), 1))
        for prediction, references in zip(case["predictions"], case["references"], strict=True)
    ]
    for name, expected in (("official", case["score"]), ("kvpress", case["score_kvpress"])):
        assert round(100 * sum(each[name] for each in scores) / len(scores), 2) == expected
