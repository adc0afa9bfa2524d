"""RULER's tasks by name: 13 of its own, and stand-ins for those whose texts are not at hand, named apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evals.ruler.cwe import CommonWords
from evals.ruler.fwe import FrequentWords
from evals.ruler.generator import Generator
from evals.ruler.niah import Lines, Needles, Niah, Text
from evals.ruler.prose import prose
from evals.ruler.qa import QuestionAnswering
from evals.ruler.sources import ESSAYS, HOTPOT, PUNKT, SQUAD, Sources
from evals.ruler.vt import VariableTracking, VariableTrackingWithExample

TOKENS_TO_GENERATE = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


@dataclass(frozen=True)
class Definition:
    """`family` decides prompt cut, scoring and generation length; `needs`: Sources' file names; `official`: RULER's."""

    family: str
    description: str
    make: Callable[..., Generator]
    needs: tuple[str, ...] = ()
    official: bool = True
    stands_for: str = ""


def essay_haystack(sources: Sources) -> Text:
    return Text(lambda units, _: sources.essays.sentences(units), most=len(sources.essays.words))


def prose_sentences(units: int, generator: Niah) -> list[str]:
    """Written anew for every sample, from the sample's own random numbers."""
    return re.split(r"(?<=\.) ", prose(units, generator.rng))


ESSAY_TASKS = {
    "niah_single_2": ("one needle in essays", Needles()),
    "niah_single_3": ("one needle in essays, its value a uuid", Needles(value_type="uuids")),
    "niah_multikey_1": ("one of four needles in essays", Needles(keys=4)),
    "niah_multivalue": ("all four values of one key in essays", Needles(values=4)),
    "niah_multiquery": ("four keys at once in essays", Needles(queries=4)),
}


def essay_task(name: str) -> Definition:
    description, needles = ESSAY_TASKS[name]

    def make(sources: Sources, **common: Any) -> Niah:
        return Niah(needles, essay_haystack(sources), **common)

    return Definition("niah", description, make, needs=(ESSAYS, PUNKT))


def stand_in(name: str, haystack: str) -> Definition:
    description, needles = ESSAY_TASKS[name]

    def make(sources: Sources, **common: Any) -> Niah:
        return Niah(needles, Lines() if haystack == "noise" else Text(prose_sentences, steps=(25, 250)), **common)

    description = description.replace("essays", "repeated noise" if haystack == "noise" else "prose of our own grammar")
    return Definition("niah", f"{description} (not RULER's)", make, official=False, stands_for=name)


def niah(description: str, needles: Needles, distractors: bool) -> Definition:
    return Definition(
        "niah", description, lambda sources, **common: Niah(needles, Lines(distractors=distractors), **common)
    )


RULER: Mapping[str, Definition] = {
    "niah_single_1": niah("one needle in repeated noise", Needles(), distractors=False),
    "niah_single_2": essay_task("niah_single_2"),
    "niah_single_3": essay_task("niah_single_3"),
    "niah_multikey_1": essay_task("niah_multikey_1"),
    "niah_multikey_2": niah("one needle among needles", Needles(), distractors=True),
    "niah_multikey_3": niah(
        "one needle among needles, keys and values uuids",
        Needles(key_type="uuids", value_type="uuids"),
        distractors=True,
    ),
    "niah_multivalue": essay_task("niah_multivalue"),
    "niah_multiquery": essay_task("niah_multiquery"),
    "vt": Definition(
        "vt",
        "variables that hold a value through a chain of four assignments",
        lambda sources, **common: VariableTrackingWithExample(**common),
    ),
    "cwe": Definition(
        "cwe",
        "the ten most common words of a list",
        lambda sources, **common: CommonWords(lambda: sources.english_words, **common),
    ),
    "fwe": Definition("fwe", "the three most frequent coded words", lambda sources, **common: FrequentWords(**common)),
    "qa_1": Definition(
        "qa",
        "SQuAD questions, other paragraphs as haystack",
        lambda sources, **common: QuestionAnswering(sources.squad, **common),
        needs=(SQUAD,),
    ),
    "qa_2": Definition(
        "qa",
        "HotpotQA questions, other paragraphs as haystack",
        lambda sources, **common: QuestionAnswering(sources.hotpotqa, **common),
        needs=(HOTPOT,),
    ),
}

STAND_INS: Mapping[str, Definition] = {
    # niah_single_2 on noise would be niah_single_1
    **{f"{name}_noise": stand_in(name, "noise") for name in ESSAY_TASKS if name != "niah_single_2"},
    **{f"{name}_prose": stand_in(name, "prose") for name in ESSAY_TASKS},
    "vt_plain": Definition(
        "vt",
        "vt without the worked example, which alone takes 500 tokens (not RULER's)",
        lambda sources, **common: VariableTracking(**common),
        official=False,
        stands_for="vt",
    ),
}

TASKS: Mapping[str, Definition] = {**RULER, **STAND_INS}
