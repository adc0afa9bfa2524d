"""What an evaluation answers is what the model answers when it is asked each question alone, by transformers itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evals.jobs.decode import ActiveMethod, add_answers, answer_batch
from evals.jobs.prompts import TokenizedSample
from evals.task import Sample, Task
from lukv.backend.generate import compress
from lukv.model import LoadedModel, load

CONTEXTS = ["The door of room 1 is red. " * 6, "The door of room 2 is green. " * 5]
QUESTIONS = ["Which door?", "What colour is it?"]
TASK = Task("task", 1, "", [], lambda prediction, sample: {"x": 0.0})


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return load(model, device="cpu")


@pytest.fixture(scope="module")
def stock(model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model)


def predictions(loaded: LoadedModel, questions: list[str], tokens: int = 16, **options: Any) -> dict[str, str]:
    """Sample id -> prediction. All contexts are one batch, whose questions are asked one after the other."""
    batch = []
    for i, context in enumerate(CONTEXTS):
        ids = [loaded.prompt_ids(context, question, "") for question in questions]
        samples = [Sample(f"{i} {q}", "task", context, q, ("x",), tokens, **options) for q in questions]
        batch.append([TokenizedSample(s, TASK, tuple(c), tuple(q)) for s, (c, q) in zip(samples, ids, strict=True)])
    active = ActiveMethod(eviction=None, done={})
    ((_, lines),) = answer_batch(batch, [active], loaded, together=False)
    return {line["id"]: line["prediction"] for line in lines}


def greedy(stock: PreTrainedModel, loaded: LoadedModel, context: str, question: str, tokens: int = 16) -> str:
    before, after = loaded.prompt_ids(context, question, "")
    prompt = torch.tensor([before + after])
    said = stock.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False)
    return loaded.decode(said[0, prompt.shape[1] :].tolist())


def test_each_question_is_answered_as_if_it_were_the_only_one(loaded: LoadedModel, stock: PreTrainedModel) -> None:
    """A second question must not see the first one and its answer."""
    found = predictions(loaded, QUESTIONS)
    expected = {f"{i} {q}": greedy(stock, loaded, context, q) for i, context in enumerate(CONTEXTS) for q in QUESTIONS}
    assert found == expected
    assert len(set(expected.values())) == 4


def test_an_answer_ends_with_the_samples_stop_string(loaded: LoadedModel, stock: PreTrainedModel) -> None:
    whole = greedy(stock, loaded, CONTEXTS[0], QUESTIONS[0])
    string = whole[3:5]
    end = whole.index(string) + 2
    assert end < len(whole)
    assert predictions(loaded, QUESTIONS[:1], stop=(string,))[f"0 {QUESTIONS[0]}"] == whole[:end]


def test_the_samples_first_tokens_complete_no_stop_string(loaded: LoadedModel, stock: PreTrainedModel) -> None:
    whole = greedy(stock, loaded, CONTEXTS[0], QUESTIONS[0])
    for minimum in (1, 3):
        said = predictions(loaded, QUESTIONS[:1], stop=(whole[0],), min_new_tokens=minimum)[f"0 {QUESTIONS[0]}"]
        assert len(said) >= minimum  # a token is a character
        assert whole[0] not in said[:minimum]


def test_upper_bounds_know_the_answer_up_to_its_end(loaded: LoadedModel, stock: PreTrainedModel) -> None:
    whole = greedy(stock, loaded, CONTEXTS[0], QUESTIONS[0])
    string = whole[3:5]
    context, question = loaded.prompt_ids(CONTEXTS[0], QUESTIONS[0], "")

    def known(tokens: int, stop: tuple[str, ...] = ()) -> tuple[int, ...]:
        sample = Sample("x", "task", "", "", ("x",), tokens, stop=stop)
        batch = [[TokenizedSample(sample, TASK, tuple(context), tuple(question))]]
        full = compress(loaded, [context])
        (prompt,) = add_answers([loaded.describe_prompt(context)], batch, full, loaded)
        assert prompt.question == tuple(question)
        assert full.tokens.tolist() == [len(context)]
        return prompt.answer

    assert loaded.decode(known(16)) == whole
    assert loaded.decode(known(16, (string,))) == whole[: whole.index(string) + 2]
    ending = copy.copy(loaded)
    ending.eos_ids = known(16)[5:6]  # its sixth token ends the answer from now on
    first = known(16).index(ending.eos_ids[0])
    batch = [[TokenizedSample(Sample("x", "task", "", "", ("x",), 16), TASK, tuple(context), tuple(question))]]
    (prompt,) = add_answers([loaded.describe_prompt(context)], batch, compress(loaded, [context]), ending)
    assert prompt.answer == known(16)[: first + 1]


def test_the_answer_upper_bounds_know_may_have_first_tokens_that_end_nothing(
    loaded: LoadedModel, stock: PreTrainedModel
) -> None:
    """As LongBench's samsum: the answer that is known is the one that is given."""
    first = greedy(stock, loaded, CONTEXTS[0], QUESTIONS[0])[0]
    rules: dict[str, Any] = {"stop": (first,), "min_new_tokens": 3}
    said = predictions(loaded, QUESTIONS[:1], **rules)[f"0 {QUESTIONS[0]}"]
    context, question = loaded.prompt_ids(CONTEXTS[0], QUESTIONS[0], "")
    sample = Sample("x", "task", "", "", ("x",), 16, **rules)
    batch = [[TokenizedSample(sample, TASK, tuple(context), tuple(question))]]
    (prompt,) = add_answers([loaded.describe_prompt(context)], batch, compress(loaded, [context]), loaded)
    assert loaded.decode(prompt.answer) == said
    assert len(said) > 1
