"""pipeline("kv-eviction-text-generation"): questions about a context, whose cache is compressed once.

Importing this module registers the task with transformers. It is called as kvpress's "kv-press-text-generation" is,
with method= and budget= instead of press=.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

from transformers import AutoModelForCausalLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from lukv.library import answer_rows, compress_rows, pair, question_ids
from lukv.named import method as find_method
from lukv.selection import Eviction

TASK = "kv-eviction-text-generation"


@dataclass(frozen=True)
class Prompt:
    """Token ids of a context and of what is asked about it. single: the answer is wanted by itself, not in a list."""

    context: list[int]
    questions: list[list[int]]
    single: bool


@dataclass(frozen=True)
class Reply:
    answers: list[str]
    single: bool


class EvictionTextGenerationPipeline(Pipeline):
    """pipe(context, question="...") -> {"answer": "..."}; pipe(context, questions=[...]) -> {"answers": [...]}.

    method: a name of conf/method with budget= (the share to KEEP), budget_tokens= or budget_bytes= and, if it is not to
    be auto, cache_dtype=; or what `lukv.method` returned;
    None keeps everything. answer_prefix: how each answer begins. max_new_tokens: 50 unless given. max_context_length:
    tokens after which a context is cut off, with a warning. enable_thinking: the chat template's switch. All of them
    can be given to `pipeline(...)`, too. A list of contexts gives a list of replies.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False

    def _sanitize_parameters(  # type: ignore[override]
        self,
        question: str | None = None,
        questions: Sequence[str] | None = None,
        answer_prefix: str | None = None,
        method: str | Eviction | None = None,
        budget: float | None = None,
        budget_tokens: int | None = None,
        budget_bytes: float | None = None,
        cache_dtype: str | None = None,
        max_new_tokens: int | None = None,
        max_context_length: int | None = None,
        enable_thinking: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if question is not None and questions is not None:
            raise ValueError("both question and questions are given: give one of them")
        if isinstance(questions, str):
            raise ValueError("questions is a list of texts: give a single one as question=")
        size = drop_missing(
            {
                "budget": budget,
                "budget_tokens": budget_tokens,
                "budget_bytes": budget_bytes,
                "cache_dtype": cache_dtype,
            }
        )
        if size and not isinstance(method, str):
            raise ValueError(f"{' and '.join(size)} go with the name of a method: give method=NAME, too")
        asked = {"question": question, "questions": questions, "answer_prefix": answer_prefix}
        preprocess = asked | {"max_context_length": max_context_length, "enable_thinking": enable_thinking}
        forward: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        if isinstance(method, str):
            forward |= {"method": find_method(method, model=self.model, **size)}
        elif method is not None:
            forward |= {"method": method}
        return drop_missing(preprocess), drop_missing(forward), {}

    def preprocess(  # type: ignore[override]
        self,
        context: str,
        question: str = "",
        questions: Sequence[str] | None = None,
        answer_prefix: str = "",
        max_context_length: int | None = None,
        enable_thinking: bool = False,
    ) -> Prompt:
        loaded = replace(pair(self.model, self.tokenizer), thinking=enable_thinking)  # type: ignore[arg-type]
        ids = loaded.prompt_ids(context, "?", "")[0]
        if max_context_length is not None and len(ids) > max_context_length:
            getLogger(__name__).warning("the context is cut from %d to %d tokens", len(ids), max_context_length)
        asked = [question] if questions is None else questions
        rows = [question_ids(loaded, text, answer_prefix) for text in asked]
        return Prompt(ids[:max_context_length], rows, questions is None)

    def _forward(  # type: ignore[override]
        self, prompt: Prompt, method: Eviction | None = None, max_new_tokens: int = 50
    ) -> Reply:
        loaded = pair(self.model, self.tokenizer)  # type: ignore[arg-type]
        cache = compress_rows(loaded, [prompt.context], method)
        answers = [answer_rows(loaded, cache, [question], max_new_tokens)[0] for question in prompt.questions]
        return Reply(answers, prompt.single)

    def postprocess(self, reply: Reply) -> dict[str, str | list[str]]:  # type: ignore[override]
        return {"answer": reply.answers[0]} if reply.single else {"answers": reply.answers}


def drop_missing(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: the others keep what they were when the pipeline was made."""
    return {key: value for key, value in parameters.items() if value is not None}


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=EvictionTextGenerationPipeline, pt_model=AutoModelForCausalLM, type="text"
)
