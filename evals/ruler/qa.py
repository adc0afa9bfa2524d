"""Question answering over documents: SQuAD (qa_1) and HotpotQA (qa_2), other documents as haystack (qa.py)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from evals.ruler.generator import Generator, Prompt
from evals.ruler.templates import DOCUMENT, QA, QA_PREFIX


@dataclass(frozen=True)
class Question:
    """`own` and `related` are indices into the collection's documents: with the answer, of the same article."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Questions in file order; `documents` sorted, each once. `path` for messages."""

    path: str
    questions: tuple[Question, ...]
    documents: tuple[str, ...]


class QuestionAnswering(Generator):
    step = 10

    def __init__(self, collection: Collection, **common: Any) -> None:
        super().__init__(**common)
        self.collection = collection
        self.everything = list(collection.documents)  # 2024 shuffles it in place, sample after sample
        self.most = len(collection.documents) if self.ruler_version == 2024 else None

    def pick(self, question: Question, units: int) -> list[str]:
        documents = self.collection.documents
        if units < len(documents):
            missing = units - len(question.own)
            if missing > len(question.related):
                near = {*question.own, *question.related}
                others = [number for number in range(len(documents)) if number not in near]
                picked = [*question.own, *question.related, *self.rng.sample(others, missing - len(question.related))]
            else:
                picked = [*question.own, *self.rng.sample(question.related, missing)]
            return [documents[number] for number in picked]
        if self.ruler_version == 2024:
            return self.everything
        repeats = -(-units // len(documents))
        return (list(documents) * repeats)[:units]

    def build(self, units: int, index: int) -> tuple[str, tuple[str, ...]]:
        questions = self.collection.questions
        if index >= len(questions):
            raise ValueError(
                f"ruler task {self.name}: {self.collection.path} has {len(questions)} questions; "
                f"set benchmark.samples={len(questions)} or limit={len(questions)}"
            )
        documents = self.pick(questions[index], units)
        Random(self.seed).shuffle(documents)
        context = "\n\n".join(DOCUMENT.format(i=i, document=text) for i, text in enumerate(documents, start=1))
        return (QA + QA_PREFIX).format(context=context, query=questions[index].text), questions[index].answers

    def probe(self, units: int) -> int:
        text, answers = self.build(units, 0)
        return self.count_tokens(f"{text} {list(answers)}" if self.ruler_version == 2024 else text)

    def draw(self, units: int, index: int) -> Prompt:
        text, answers = self.build(units, index)
        return Prompt(text, answers, self.count_tokens(text) + self.tokens_to_generate, units)
