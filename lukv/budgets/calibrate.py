"""Calibration: from contexts and questions to the running means that budget tables are made of.

One pass serves all scorers. After each context the means are saved. A calibration that was stopped goes on from there,
and ends with the same bits as one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lukv.artifacts import describe, read_tensors, reading, write_tensors
from lukv.budgets.curve import MeanCurve
from lukv.budgets.mean import MeanSolution
from lukv.budgets.oracle import MeasuredContext, OracleSettings, UtilityOracle
from lukv.budgets.threshold import MeanThreshold
from lukv.learned import LearnedScorer, ScorerFit
from lukv.model import LoadedModel
from lukv.scoring import Scorer
from lukv.selection import Protection, rank

TokenIds = tuple[int, ...]

LATER = {"own_sampling": False, "first_row": True, "starved": "sinks_first", "any_weights": False}
"""Settings that came later, with what was done before: a calibration that was begun without them goes on."""


@dataclass(frozen=True)
class CalibrationContext:
    """Token ids of a context, and of each (question, answer) about it. An answer that is not known is empty."""

    ids: TokenIds
    questions: tuple[tuple[TokenIds, TokenIds], ...]


@dataclass(frozen=True)
class CalibrationSettings:
    """How utilities become tables. The defaults are the paper's.

    aggregation: `budgets` averages the budgets of all samples, `losses` solves their mean loss curve once.
    weigh: `pairs` gives every (context, question) pair the same weight, `contexts` every context.
    scope, polish: as in lukv.budgets.solver.solve.
    power: the exponent of the utility in lukv.budgets.curve, which always gives every context the same weight.
    """

    oracle: OracleSettings
    power: float = 1.5
    aggregation: Literal["budgets", "losses"] = "budgets"
    weigh: Literal["pairs", "contexts"] = "pairs"
    scope: Literal["global", "layer"] = "global"
    polish: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("aggregation", ("budgets", "losses")), ("weigh", ("pairs", "contexts"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.scope not in ("global", "layer"):
            raise ValueError(f"scope={self.scope!r}: choose one of global, layer")


Reached = Callable[[int], None]
"""Told how many contexts are done: once at the start, with those that the state on disk includes, and after each."""


def tell_nobody(done: int) -> None:
    """Nobody asked how far it is."""


@dataclass
class ScorerMeans:
    """The means of one scorer: of the samples' own solutions, of the loss curves, and its scores' histogram."""

    solution: MeanSolution
    curve: MeanCurve
    threshold: MeanThreshold

    @property
    def parts(self) -> dict[str, dict[str, np.ndarray]]:
        return {"solution": self.solution.state, "curve": self.curve.state, "threshold": self.threshold.state}


def fit(
    model: LoadedModel,
    scorers: Sequence[LearnedScorer],
    protection: Protection,
    contexts: Iterable[CalibrationContext],
    settings: CalibrationSettings,
    state_path: Path,
    reached: Reached = tell_nobody,
) -> list[ScorerFit]:
    """Measure the contexts for scorers that must be fitted, and return one ScorerFit for each.

    `state_path` holds the sums after each context; contexts that they include already are skipped. Raises ValueError
    for a state of other settings, and for a damaged one.
    """
    parts = [list_settings(scorer) for scorer in scorers]
    about = [list_settings(settings), parts, list_settings(protection), model.weights_hash]
    state = CalibrationState(state_path, hash_json(about))
    fits = [scorer.begin_fit() for scorer in scorers]
    for scorer, each in zip(scorers, fits, strict=True):
        each.state = state.part(scorer.name, "sums")
    watchers = [scorer.watcher for scorer in scorers]
    for number, measured, context in measure_contexts(model, contexts, settings, state, reached, watchers):
        questions = context.questions
        worth: Tensor = sum(measured.utility(*q, 1000 * number + i) for i, q in enumerate(questions))  # type: ignore[assignment]
        worth = worth / (measured.units * len(questions))
        for scorer, watcher, each in zip(scorers, watchers, fits, strict=True):
            each.add(measured.layers(watcher), worth, protection.over(scorer))
        state.save(number + 1, {s.name: {"sums": each.state} for s, each in zip(scorers, fits, strict=True)})
    return fits


def measure(
    model: LoadedModel,
    scorers: Sequence[Scorer],
    protection: Protection,
    contexts: Iterable[CalibrationContext],
    settings: CalibrationSettings,
    state_path: Path,
    reached: Reached = tell_nobody,
) -> list[ScorerMeans]:
    """Measure the contexts for scorers that can rank, and return the means of each.

    `state_path` holds the means after each context; contexts that they include already are skipped. Raises ValueError
    for a state of other settings, for a damaged one, and for a context that a scorer's protection covers completely.
    """
    # a state without thresholds, from before there were any, begins anew
    about = [list_settings(settings), "thresholds", *(describe(model, scorer, protection) for scorer in scorers)]
    state = CalibrationState(state_path, hash_json(about))
    protected = [protection.over(scorer).sink + protection.over(scorer).recent for scorer in scorers]
    means = [
        ScorerMeans(
            MeanSolution(model.layers, model.kv_heads, settings.scope, settings.polish, state.part(s.name, "solution")),
            MeanCurve(model.layers, model.kv_heads, first, settings.power, state.part(s.name, "curve")),
            MeanThreshold(state.part(s.name, "threshold")),
        )
        for s, first in zip(scorers, protected, strict=True)
    ]
    for number, measured, context in measure_contexts(model, contexts, settings, state, reached, scorers):
        tokens, questions = len(context.ids), context.questions
        for scorer, first in zip(scorers, protected, strict=True):
            if first >= tokens:
                raise ValueError(f"context {number} has {tokens} tokens, all of them protected under {scorer.name}")
        usual = [None if scorer.needs_answer else measured.scores(scorer, protection) for scorer in scorers]
        weight = 1.0 if settings.weigh == "pairs" else 1 / len(questions)
        for index, question in enumerate(questions):
            utility = measured.utility(*question, 1000 * number + index)
            for scorer, mean, known, first in zip(scorers, means, usual, protected, strict=True):
                scores = measured.scores(scorer, protection, utility) if known is None else known
                worth = utility.gather(-1, rank(scores))
                mean.solution.add(worth[..., first:].numpy(), tokens, weight)
                mean.curve.add((worth / measured.units).numpy(), 1 / len(questions))
                mean.threshold.add(scores, protection.over(scorer).mask(tokens), 1 / len(questions))
        state.save(number + 1, {s.name: mean.parts for s, mean in zip(scorers, means, strict=True)})
    return means


def measure_contexts(
    model: LoadedModel,
    contexts: Iterable[CalibrationContext],
    settings: CalibrationSettings,
    state: CalibrationState,
    reached: Reached,
    scorers: Sequence[Scorer] = (),
) -> Iterator[tuple[int, MeasuredContext, CalibrationContext]]:
    """Prefill each context that the state does not include yet."""
    oracle = UtilityOracle(model, settings.oracle)
    before = state.contexts
    reached(before)
    for number, context in enumerate(contexts):
        if number >= before:
            yield number, oracle.prefill(context.ids, scorers), context
            reached(number + 1)


class CalibrationState:
    """The running means on disk: arrays named SCORER/PART/NAME, and how many contexts they include.

    `made_for` is a hash of all that decides them. Raises ValueError if the file was begun for another one.
    """

    def __init__(self, path: Path, made_for: str) -> None:
        self.path, self.made_for, self.contexts = path, made_for, 0
        self.arrays: dict[str, np.ndarray] = {}
        if not path.exists():
            return
        with reading(path, "calibration state (remove it to begin anew)"):
            self.arrays, header = read_tensors(path)
            self.contexts = int(header["contexts"])
        if header.get("made_for") != made_for:
            raise ValueError(f"{path} was begun with other settings: remove it to begin anew")

    def part(self, scorer: str, part: str) -> dict[str, np.ndarray]:
        """The arrays of one part of a scorer, by name. Empty if the state is new."""
        split = {tuple(name.split("/")): array for name, array in self.arrays.items()}
        return {name: array for (*owner, name), array in split.items() if owner == [scorer, part]}

    def save(self, contexts: int, states: dict[str, dict[str, dict[str, np.ndarray]]]) -> None:
        arrays = {
            f"{scorer}/{part}/{name}": array
            for scorer, parts in states.items()
            for part, state in parts.items()
            for name, array in state.items()
        }
        write_tensors(self.path, arrays, {"made_for": self.made_for, "contexts": str(contexts)})


def list_settings(node: Any) -> dict[str, Any]:
    """A dataclass's fields, those of nested ones too, without those of LATER that ask for what was done before."""
    return asdict(node, dict_factory=lambda fields: {k: v for k, v in fields if (k, v) not in LATER.items()})


def hash_json(about: Any) -> str:
    """16 hexadecimal digits that identify a JSON value."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
