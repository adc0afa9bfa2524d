"""Contexts and questions -> running means, one pass for all scorers. What is kept between contexts is written to the
run folder after each: a measurement that was stopped goes on, and ends with the same bits as one that was not."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from tqdm import tqdm

from lukv.artifacts import describe, read_tensors, reading, write_tensors
from lukv.budgets.curve import MeanCurve
from lukv.budgets.mean import MeanSolution
from lukv.budgets.oracle import MeasuredContext, OracleSettings, UtilityOracle
from lukv.eviction import Protection
from lukv.model import LoadedModel
from lukv.scoring import PromptLayer, Scorer

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class CalibrationContext:
    """Token ids of a context, and of each question about it with its answer (empty where it is not known)."""

    ids: TokenIds
    questions: tuple[tuple[TokenIds, TokenIds], ...]


@dataclass(frozen=True)
class CalibrationSettings:
    """aggregation: budgets (mean of the samples' own budgets: the paper) or losses (one solution of the mean loss
    curve). weigh: every (context, question) pair the same (the paper), or every context. scope, polish: see
    lukv.budgets.solver.solve. power: of the utility, for lukv.budgets.curve (which weighs contexts the same)."""

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


class ScorerFit(Protocol):
    """Sums from which a scorer is fitted; lukv.probe.ProbeFit is one. `state` is all there is to save."""

    state: dict[str, np.ndarray]

    def add(self, layers: Sequence[PromptLayer], utility: Tensor, protection: Protection) -> None: ...

    def save(self, path: str | Path, metadata: dict[str, Any]) -> None: ...


@runtime_checkable
class LearnedScorer(Protocol):
    """A scorer that has to be fitted before it can rank."""

    def begin_fit(self) -> ScorerFit: ...

    def load_fit(self, path: str | Path) -> Scorer: ...


@dataclass
class ScorerMeans:
    """What is averaged for one scorer: the samples' own solutions, and the loss curve."""

    solution: MeanSolution
    curve: MeanCurve

    @property
    def parts(self) -> dict[str, dict[str, np.ndarray]]:
        return {"solution": self.solution.state, "curve": self.curve.state}


def fit(
    model: LoadedModel,
    scorers: Sequence[Scorer],
    protection: Protection,
    contexts: Iterable[CalibrationContext],
    settings: CalibrationSettings,
    state_path: Path,
    total: int | None = None,
) -> list[ScorerFit]:
    """What the learnt scorers are to be fitted from, one ScorerFit each. The state after each context is in
    `state_path`; contexts that it holds already are skipped."""
    about = [asdict(settings), [asdict(scorer) for scorer in scorers], asdict(protection), model.weights_hash]
    state = CalibrationState(state_path, hash_json(about))
    learners = [scorer.begin_fit() for scorer in scorers if isinstance(scorer, LearnedScorer)]
    for scorer, learner in zip(scorers, learners, strict=True):
        learner.state = state.of(scorer.name, "sums")
    for number, measured, context in measure_contexts(model, contexts, settings, state, "fit", total):
        questions = context.questions
        worth: Tensor = sum(measured.utility(*q, 1000 * number + i) for i, q in enumerate(questions))  # type: ignore[assignment]
        worth = worth / (measured.units * len(questions))
        for scorer, learner in zip(scorers, learners, strict=True):
            learner.add(measured.layers(scorer), worth, protection.over(scorer))
        state.save(number + 1, {s.name: {"sums": each.state} for s, each in zip(scorers, learners, strict=True)})
    return learners


def measure(
    model: LoadedModel,
    scorers: Sequence[Scorer],
    protection: Protection,
    contexts: Iterable[CalibrationContext],
    settings: CalibrationSettings,
    state_path: Path,
    total: int | None = None,
) -> list[ScorerMeans]:
    """The means over all contexts, one for each scorer. The state after each context is in `state_path`; contexts that
    it holds already are skipped. Raises ValueError for a context that a scorer's protection covers whole."""
    about = [asdict(settings), *(describe(model, scorer, protection) for scorer in scorers)]
    state = CalibrationState(state_path, hash_json(about))
    protected = [protection.over(scorer).sink + protection.over(scorer).recent for scorer in scorers]
    means = [
        ScorerMeans(
            MeanSolution(model.layers, model.kv_heads, settings.scope, settings.polish, state.of(s.name, "solution")),
            MeanCurve(model.layers, model.kv_heads, first, settings.power, state.of(s.name, "curve")),
        )
        for s, first in zip(scorers, protected, strict=True)
    ]
    for number, measured, context in measure_contexts(model, contexts, settings, state, "calibrate", total, scorers):
        tokens, questions = len(context.ids), context.questions
        for scorer, first in zip(scorers, protected, strict=True):
            if first >= tokens:
                raise ValueError(f"context {number} has {tokens} tokens, all of them protected under {scorer.name}")
        ranked = [None if scorer.needs_utility else measured.order(scorer, protection) for scorer in scorers]
        weight = 1.0 if settings.weigh == "pairs" else 1 / len(questions)
        for index, question in enumerate(questions):
            utility = measured.utility(*question, 1000 * number + index)
            for scorer, mean, usual, first in zip(scorers, means, ranked, protected, strict=True):
                order = measured.order(scorer, protection, utility) if usual is None else usual
                worth = utility.gather(-1, order)
                mean.solution.add(worth[..., first:].numpy(), tokens, weight)
                mean.curve.add((worth / measured.units).numpy(), 1 / len(questions))
        state.save(number + 1, {s.name: mean.parts for s, mean in zip(scorers, means, strict=True)})
    return means


def measure_contexts(
    model: LoadedModel,
    contexts: Iterable[CalibrationContext],
    settings: CalibrationSettings,
    state: CalibrationState,
    title: str,
    total: int | None,
    scorers: Sequence[Scorer] = (),
) -> Iterator[tuple[int, MeasuredContext, CalibrationContext]]:
    """The contexts that the state does not hold yet, each prefilled once."""
    oracle = UtilityOracle(model, settings.oracle)
    bar = tqdm(contexts, title, total, unit="context", disable=not sys.stderr.isatty())
    for number, context in enumerate(bar):
        if number >= state.contexts:
            yield number, oracle.prefill(context.ids, scorers), context


class CalibrationState:
    """The running means on disk: arrays "<scorer>/<part>/<name>", how many contexts they hold and what they are
    means of."""

    def __init__(self, path: Path, made_for: str) -> None:
        self.path, self.made_for, self.contexts = path, made_for, 0
        self.arrays: dict[str, np.ndarray] = {}
        if not path.exists():
            return
        with reading(path, "state of a calibration that can go on (remove it to begin anew)"):
            self.arrays, header = read_tensors(path)
            self.contexts = int(header["contexts"])
        if header.get("made_for") != made_for:
            raise ValueError(f"{path} was begun with other settings: remove it to begin anew")

    def of(self, *of: str) -> dict[str, np.ndarray]:
        split = {tuple(name.split("/")): array for name, array in self.arrays.items()}
        return {name[-1]: array for name, array in split.items() if name[:-1] == of}

    def save(self, contexts: int, states: dict[str, dict[str, dict[str, np.ndarray]]]) -> None:
        arrays = {
            f"{scorer}/{part}/{name}": array
            for scorer, parts in states.items()
            for part, state in parts.items()
            for name, array in state.items()
        }
        write_tensors(self.path, arrays, {"made_for": self.made_for, "contexts": str(contexts)})


def hash_json(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
