"""The question-agnostic protocols to the letter: the LU-KV authors' prompts, and the official prompt cut in two."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from evals.jobs.prompts import TokenizedSample, cut_batches, tokenize_sample
from evals.longbench import LongBench
from evals.longbench.catalog import CATALOG, ENGLISH
from evals.task import Sample
from lukv.model import LoadedModel
from tests.evals.conftest import Words, read_jsonl

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/longbench_lukv.json").read_text(encoding="utf-8"))
ROW = {"context": "One.\nTwo {x}.\n", "input": "What then?\nType:", "answers": ["a"], "length": 4}
"""The made-up row of tests/golden/render_lukv.py."""


class Letters:
    """A tokenizer of characters with the golden cases' BOS and chat template: its ids say which text was made."""

    bos_token = "<s>"
    eos_token_id = None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, chat: bool, **stated: int) -> None:
        self.chat_template = "[user]" if chat else None
        self.init_kwargs = stated

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return f"<s>[user]{messages[0]['content']}[/user][assistant]"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(map(ord, text))

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, token_ids))


def model_with(tokenizer: Any) -> LoadedModel:
    """It only has an embedding, with a row for every character."""
    embedding = SimpleNamespace(weight=torch.empty(0x110000, 0))
    model = SimpleNamespace(get_input_embeddings=lambda: embedding)
    return LoadedModel(model, tokenizer, "none", "none", "")  # type: ignore[arg-type]


def sample_of(protocol: str, task: str, row: dict[str, Any], tokenizer: Any, **options: Any) -> Sample:
    benchmark = LongBench("unread", protocol=protocol, **options)
    read = {"all_classes": (), **row, "answers": tuple(row["answers"])}
    (made,) = benchmark.make(task, [read], tokenizer, None)
    (sample,) = made.samples
    return sample


def joined(parts: tuple[list[int], list[int]]) -> list[int]:
    return [*parts[0], *parts[1]]


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("chat", ["chat", "base"])
@pytest.mark.parametrize("task", GOLDEN)
def test_lukv_is_the_authors_prompt(task: str, chat: str) -> None:
    tokenizer = Letters(chat == "chat")
    sample = sample_of("lukv", task, ROW, tokenizer)
    context, question = map(tokenizer.decode, tokenize_sample(sample, model_with(tokenizer)))
    assert [digest(context), question] == GOLDEN[task]["made_up"][chat]
    assert sample.max_new_tokens == GOLDEN[task]["max_new_tokens"]
    assert (sample.stop, sample.min_new_tokens, sample.first_token_may_end) == ((), 0, False)


@pytest.mark.parametrize("task", GOLDEN)
def test_lukv_on_real_rows(task: str, shared: Path) -> None:
    rows = {row["_id"]: row for row in read_jsonl(shared / f"data/longbench/{task}.jsonl")}
    assert GOLDEN[task]["rows"]
    for name, expected in GOLDEN[task]["rows"].items():
        for chat in ("chat", "base"):
            tokenizer = Letters(chat == "chat")
            parts = tokenize_sample(sample_of("lukv", task, rows[name], tokenizer), model_with(tokenizer))
            assert [digest(tokenizer.decode(part)) for part in parts] == expected[chat]


def test_the_golden_cases_are_those_of_the_16_tasks() -> None:
    assert set(GOLDEN) == set(ENGLISH)


@pytest.mark.parametrize("task", ["qasper", "lcc"])
def test_lukv_cuts_token_ids_at_the_tokenizers_own_limit_and_nowhere_else(task: str) -> None:
    row = {**ROW, "context": "word " * 400}
    for stated, length in (({}, None), ({"model_max_length": 10**30}, None), ({"model_max_length": 100}, 100)):
        tokenizer = Letters(True, **stated)
        tokenizer.model_max_length = 500  # what load makes of the model's positions
        model = model_with(tokenizer)
        context, question = tokenize_sample(sample_of("lukv", task, row, tokenizer), model)
        uncut, asked = tokenize_sample(sample_of("lukv", task, row, Letters(True)), model)
        assert (context, question) == (uncut[:length], asked)
        assert len(uncut) > 2000
    context, _ = tokenize_sample(sample_of("lukv", task, row, tokenizer, max_length=64), model)
    assert context == uncut[:64]


@pytest.mark.parametrize("protocol", ["official", "agnostic", "defensivekv", "kvpress", "lukv"])
def test_who_checks_the_first_token_for_the_end(protocol: str) -> None:
    sample = sample_of(protocol, "qasper", ROW, Letters(True))
    may_end = protocol not in ("kvpress", "lukv")
    assert sample.first_token_may_end == may_end
    assert LongBench("unread", protocol=protocol).facts()["first_token_may_end"] == may_end


def test_samples_that_are_decoded_otherwise_are_not_decoded_together() -> None:
    samples = [Sample(str(i), "t", "c", "q", ("a",), 4, first_token_may_end=bool(i % 2)) for i in range(4)]
    task: Any = SimpleNamespace(name="t")
    made = cut_batches([TokenizedSample(sample, task, (i,), (1,)) for i, sample in enumerate(samples)], 8)
    assert [[p.sample.id for context in batch for p in context] for batch in made] == [["0", "2"], ["1", "3"]]


AGNOSTIC_TAIL = {  # what of the made-up row comes after the compressed part
    "narrativeqa": "Question: What then?\nType:\n\nAnswer:",
    "gov_report": "Now, write a one-page summary of the report.\n\nSummary:",
    "vcsum": "会议总结：",
    "trec": "What then?\nType:",
    "triviaqa": "What then?\nType:",
    "lcc": "Next line of code:\n",
    "repobench-p": "What then?\nType:Next line of code:\n",
}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("task", CATALOG)
def test_agnostic_is_the_official_prompt_cut_before_the_question(task: str, chat: bool) -> None:
    tokenizer = Letters(chat)
    model = model_with(tokenizer)
    official, agnostic = (sample_of(name, task, ROW, tokenizer) for name in ("official", "agnostic"))
    context, question = tokenize_sample(agnostic, model)
    assert [*context, *question] == joined(tokenize_sample(official, model))
    said = tokenizer.decode(question).removesuffix("[/user][assistant]")
    assert said == AGNOSTIC_TAIL.get(task, said)
    assert said
    assert said in agnostic.question + agnostic.answer_prefix
    same = ("max_new_tokens", "min_new_tokens", "chat", "stop", "first_token_may_end", "references", "extra")
    assert {name: getattr(agnostic, name) for name in same} == {name: getattr(official, name) for name in same}


@pytest.mark.parametrize("task", CATALOG)
def test_agnostic_ids_are_the_official_ones_on_real_rows(task: str, shared: Path, bpe8k: Any) -> None:
    """With a tokenizer that merges over the border, whole prompts and prompts that are cut in the middle."""
    model = model_with(bpe8k)
    row = next(read_jsonl(shared / f"data/longbench/{task}.jsonl"))
    for max_length in ("auto", 400, 20):
        official, agnostic = (
            sample_of(name, task, row, bpe8k, max_length=max_length) for name in ("official", "agnostic")
        )
        context, question = tokenize_sample(agnostic, model)
        assert [*context, *question] == joined(tokenize_sample(official, model))
        assert min(len(context), len(question)) > 0
        assert bpe8k.decode(context) in (bpe8k.bos_token or "") + agnostic.context  # nothing of the question
        if max_length != 20:
            assert len(agnostic.context) - len(bpe8k.decode(context)) < 40


def test_a_token_over_the_border_comes_after_it(bpe8k: Any) -> None:
    model = model_with(bpe8k)
    context, question = model.prompt_ids("The bound", "ary of it", "", layout="whole")
    whole = bpe8k.encode((bpe8k.bos_token or "") + "The boundary of it", add_special_tokens=False)
    assert context + question == whole
    assert "The bound".startswith(bpe8k.decode(context, skip_special_tokens=True).strip())
    with pytest.raises(ValueError, match="choose one of apart, whole, plain, bare"):
        model.prompt_ids("a", "b", "c", layout="hole")


def test_where_the_middle_cut_falls_into_the_question(words: Words) -> None:
    row = {**ROW, "context": "one two three", "input": "and " * 60}
    for context in ("one two three", "one two " * 40):
        sample = sample_of("agnostic", "trec", {**row, "context": context}, words, max_length=20)
        official = sample_of("official", "trec", {**row, "context": context}, words, max_length=20)
        assert sample.context + sample.question + sample.answer_prefix == official.context
        assert sample.context != ""
        assert "and" not in sample.context
        assert sample.question.endswith("and ")
