"""What a benchmark is: tasks, each of which has samples and a metric.

A new benchmark is one folder (or file) in evals/, with a class that satisfies `Benchmark`, and one yaml in
conf/benchmark/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lukv.chat import render
from lukv.names import suggest_nearest


@dataclass(frozen=True)
class Sample:
    """One question about one context.

    Only `context` is compressed. `question` and `answer_prefix` follow it uncompressed. Where both are empty, the
    answer follows the context (and the tail of the chat template) directly.

    id                   unique within the benchmark
    task                 the name of its task
    references           correct answers; what several of them mean is up to the metric
    max_new_tokens       where the answer is cut off, in tokens
    answer_prefix        the beginning of the answer, given to the model
    chat                 put the model's chat template around the prompt, if it has one
    layout               how the parts become token ids: apart, whole, plain or bare (LoadedModel.prompt_ids)
    context_tokens       the compressed part ends after so many token ids, at most
    seen_question        the end of `context` that is the question, where the protocol shows it before compression
    stop                 strings that end the answer, besides the model's end-of-text token
    min_new_tokens       tokens of the answer before which no stop string ends it
    first_token_may_end  false: an answer whose very first token is end-of-text goes on, as in kvpress's pipeline
    conversation         samples of one name are the turns of one conversation: each is asked with the earlier questions
                         and answers in the cache. "": the sample is asked by itself. All turns have one context, and
                         the layout apart
    turn                 its place in the conversation, from 1
    stays                the answer that later turns see; None: what the model said
    extra                what else the metric or an analysis needs (all_classes, length ...)
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
    seen_question: str = ""
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    first_token_may_end: bool = True
    conversation: str = ""
    turn: int = 1
    stays: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def show_question(sample: Sample) -> Sample:
    """The sample with its question as part of what is compressed."""
    return replace(sample, context=sample.context + sample.question, question="", seen_question=sample.question)


Metric = Callable[[str, Sample], Mapping[str, float]]
"""(prediction, sample) -> scores by name, each in 0..1. The first is the task's score. The others are recorded too."""


@dataclass(frozen=True)
class Task:
    """Samples with one metric.

    `version` rises whenever prompts, samples or scoring change. Only scores of one version are comparable.
    """

    name: str
    version: int
    description: str
    samples: Sequence[Sample]
    metric: Metric

    def __post_init__(self) -> None:
        if self.name == "mean":
            raise ValueError(
                f"a task cannot be named 'mean' ({self.description}): tables and scores.csv have the mean of all tasks "
                f"under that name"
            )


class Tokenizer(Protocol):
    """What a benchmark may ask of a model's tokenizer; any transformers tokenizer is one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """The number of tokens of the bare text, without special tokens."""
    return len(tokenizer.encode(text, add_special_tokens=False))


NO_WINDOW = 10**9  # transformers' tokenizers say 1e30 where they do not know
SLACK = 16  # tokens that a prompt may have more when its parts are tokenised apart, and for BOS and a line end


def window(tokenizer: Tokenizer) -> int | None:
    """Tokens the model takes, prompt and answer together; None: the tokenizer does not know."""
    longest = getattr(tokenizer, "model_max_length", NO_WINDOW)
    return None if longest >= NO_WINDOW else int(longest)


def template_tokens(tokenizer: Tokenizer) -> int:
    """Tokens that the model's chat template puts around a message; 0 without a template, and for one that cannot be
    rendered: whoever uses it says what is wrong with it."""
    if not getattr(tokenizer, "chat_template", None):
        return 0
    try:
        return count_tokens(tokenizer, "x".join(render(tokenizer, ""))) - 1
    except ValueError:
        return 0


def check_tasks(tasks: str | Sequence[str], every: Sequence[str], title: str, groups: Sequence[str] = ()) -> list[str]:
    """The tasks that a setting names. Raises ValueError for one that is not among `every`; the line names the groups of
    tasks (all ...) too."""
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    for name in names:
        if name not in every:
            raise ValueError(
                f"benchmark.tasks: no {title} task {name!r}.{suggest_nearest(name, every)} "
                f"There are: {', '.join([*groups, *every])}"
            )
    return names


class Benchmark(Protocol):
    """What a class must have to be a benchmark. `name` goes into run ids (ruler-1024)."""

    name: str

    def tasks(self, tokenizer: Tokenizer, limit: int | None) -> Iterable[Task]:
        """The tasks, each with at most `limit` samples (None: all of them). Sample i is the same for every limit.

        The tokenizer measures lengths (RULER) and truncates prompts (LongBench).

        Raises FileNotFoundError or ValueError with one line that says what is missing and where to get it.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """What run.json says about the data, to explain a difference between two runs.

        Complete only after `tasks` has been iterated to its end, because a task may turn out not to fit (`left_out`:
        name -> reason).
        """
        ...
