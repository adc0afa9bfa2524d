"""What a benchmark is: tasks of samples, and a metric for each. A benchmark is one folder (or file) and one yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One question about one context. Only `context` is compressed; `question` and `answer_prefix` come after. Where
    both are empty the answer follows the context (and the tail of the chat template) directly.

    `chat`: put the model's chat template around it (if it has one). `layout`: how its parts become token ids: apart,
    whole or bare (LoadedModel.prompt_ids). `context_tokens`: the compressed part ends after so many token ids, at
    most. `stop`: strings that end the answer besides the model's end-of-text token; none of them may be among the first
    `min_new_tokens`. `first_token_may_end`: false goes on where the very first token is end-of-text, as kvpress's
    pipeline does. `extra`: whatever the metric or an analysis needs (all_classes, length ...).
    """

    id: str
    task: str
    context: str
    question: str
    references: tuple[str, ...]
    max_new_tokens: int
    answer_prefix: str = ""
    chat: bool = True
    layout: str = "apart"
    context_tokens: int | None = None
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    first_token_may_end: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


Metric = Callable[[str, Sample], Mapping[str, float]]
"""(prediction, sample) -> scores by name, each in 0..1; the first is the task's score, the others stand beside it."""


@dataclass(frozen=True)
class Task:
    """`version` rises whenever prompts, samples or scoring change, so that numbers are comparable only within one."""

    name: str
    version: int
    description: str
    samples: Sequence[Sample]
    metric: Metric


class Tokenizer(Protocol):
    """What a benchmark may ask of a model's tokenizer; any transformers tokenizer is one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Tokens of the bare text, special tokens not counted."""
    return len(tokenizer.encode(text, add_special_tokens=False))


class Benchmark(Protocol):
    """`name` is what goes into run ids (e.g. ruler-1024); `facts` what goes into run.json to explain a difference."""

    name: str

    def tasks(self, tokenizer: Tokenizer, limit: int | None) -> Iterable[Task]:
        """The tasks, each with at most `limit` samples (None: all); sample i is the same for every limit. The tokenizer
        measures lengths (RULER) and truncates prompts (LongBench). Raises FileNotFoundError or ValueError with one line
        that says what is missing and where to get it."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Complete once `tasks` has been gone through: a task may turn out not to fit (`left_out`: name -> reason)."""
        ...
