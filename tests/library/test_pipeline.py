"""The pipeline is called as kvpress's, and answers as the library does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

import lukv
import lukv.pipeline

CONTEXT = "The cat sat on the mat, and the dog lay by the door. " * 3
QUESTIONS = ["Where did the cat sit?", "Where did the dog lie?"]


@pytest.fixture(scope="module")
def pipe(model: Path) -> Any:
    network = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True).eval()
    words = PreTrainedTokenizerFast.from_pretrained(model)
    return pipeline("kv-eviction-text-generation", model=network, tokenizer=words, device="cpu")


def test_it_answers_as_the_library_does(pipe: Any) -> None:
    method = lukv.method("snapkv", 0.3)
    cache = lukv.compress(pipe.model, pipe.tokenizer, CONTEXT, method)
    wanted = [lukv.answer(pipe.model, pipe.tokenizer, cache, question, 20, "In") for question in QUESTIONS]
    options = {"max_new_tokens": 20, "answer_prefix": "In"}
    by_name = pipe(CONTEXT, questions=QUESTIONS, method="snapkv", budget=0.3, **options)
    assert by_name == {"answers": wanted}
    assert pipe(CONTEXT, question=QUESTIONS[1], method=method, **options) == {"answer": wanted[1]}
    assert pipe([CONTEXT, CONTEXT], question=QUESTIONS[0], method=method, **options) == [{"answer": wanted[0]}] * 2
    assert pipe(CONTEXT, questions=QUESTIONS, **options) != by_name  # nothing is evicted
    assert pipe(CONTEXT, questions=QUESTIONS, method="full", **options) == pipe(CONTEXT, questions=QUESTIONS, **options)


def test_by_the_name_of_a_folder_and_with_defaults_of_its_own(pipe: Any, model: Path) -> None:
    usual = {"method": "keydiff", "budget_tokens": 20, "max_new_tokens": 12, "tokenizer": pipe.tokenizer}
    mine = pipeline("kv-eviction-text-generation", model=str(model), device="cpu", **usual)
    wanted = pipe(CONTEXT, question=QUESTIONS[0], method="keydiff", budget_tokens=20, max_new_tokens=12)
    assert mine(CONTEXT, question=QUESTIONS[0]) == wanted
    assert len(mine(CONTEXT, question=QUESTIONS[0], max_new_tokens=4)["answer"]) <= 4


def test_a_context_is_cut_as_asked_and_said_so(pipe: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lukv.pipeline"):
        cut = pipe(CONTEXT, question="Where?", max_context_length=50, max_new_tokens=8)
    assert "the context is cut from" in caplog.text
    assert cut == pipe(CONTEXT[:48], question="Where?", max_new_tokens=8)  # and two of the template
    with pytest.raises(ValueError, match=r"the context: .* tokens, random takes 4096"):
        pipe("x" * 9000, question="Where?")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"question": "a", "questions": ["b"]}, ValueError, "both question and questions are given"),
        ({"questions": "b"}, ValueError, "give a single one as question="),
        ({"method": "snapk", "budget": 0.2}, ValueError, "Did you mean 'snapkv'"),
        ({"method": "snapkv"}, ValueError, "exactly one of budget, budget_tokens"),
        ({"budget": 0.2}, ValueError, "go with the name of a method"),
        ({"press": None}, TypeError, "unexpected keyword argument 'press'"),
    ],
)
def test_what_cannot_be_asked(options: dict, error: type[Exception], says: str, pipe: Any) -> None:
    with pytest.raises(error, match=says):
        pipe(CONTEXT, **options)
