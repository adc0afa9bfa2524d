"""Contexts of four kinds of text, and what their tokens are worth to the answer: what text_budgets.py studies.

needles    RULER's needles in its essays, each with its question
essays     RULER's essays, which simply go on
code       Python's standard library, which simply goes on
dialogue   chats and meetings of LongBench's SAMSum and QMSum, to be summarised or asked about
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evals.continuation import Continuation
from evals.jobs.prompts import tokenize_sample
from evals.longbench import LongBench
from evals.mixture import alternate
from evals.ruler import Ruler
from evals.task import Benchmark
from lukv.artifacts import read_tensors, reading, write_tensors
from lukv.budgets.calibrate import TokenIds, hash_json
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.model import LoadedModel
from lukv.scoring import Scorer
from lukv.selection import Protection

SEED = 50_042  # neither the calibrations' nor the benchmark's
QUARTER = 2  # of the texts: 0 is the benchmark's, 1 the calibrations'
NEEDLES = ("niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery")


@dataclass(frozen=True)
class Ranked:
    """A context. scores, worth [layers, K, T] float32: of each head's tokens, best-ranked first, protected ones before
    all others. worth is the utility in units of the layer's mean value weight."""

    scores: np.ndarray
    worth: np.ndarray


def list_kinds(sources: Path, dialogue: Path) -> dict[str, Benchmark]:
    """sources: a folder with RULER's PaulGrahamEssays.json; dialogue: one with samsum.jsonl and qmsum.jsonl."""
    prose = str(sources / "PaulGrahamEssays.json")
    return {
        "needles": Ruler(length=1024, tasks=list(NEEDLES), seed=SEED, sources=str(sources)),
        "essays": Continuation(length=1000, tasks="prose", prose=prose, seed=QUARTER),
        "code": Continuation(length=1000, tasks="code", seed=QUARTER),
        "dialogue": LongBench(data=str(dialogue), tasks=["samsum", "qmsum"], max_length=1000),
    }


def measure(
    loaded: LoadedModel,
    scorer: Scorer,
    protection: Protection,
    kinds: Mapping[str, Benchmark],
    count: int,
    store: Path,
) -> dict[str, list[Ranked]]:
    """Kind -> its first `count` contexts. Each is written to a file in `store` and read from there the next time.
    Raises SystemExit where a kind has too few, and ValueError for a file of something else."""
    about = [loaded.weights_hash, scorer.parameters(), asdict(protection)]
    prompts: list[tuple[str, TokenIds, TokenIds]] = []
    for kind, benchmark in kinds.items():
        samples = [each for each, *_ in alternate(list(benchmark.tasks(loaded.tokenizer, count)))][:count]
        if len(samples) < count:
            raise SystemExit(f"{kind}: {len(samples)} contexts, and {count} are needed: lower --fit or --held")
        prompts += [(kind, *map(tuple, tokenize_sample(sample, loaded))) for sample in samples]
    found: dict[str, list[Ranked]] = {kind: [] for kind in kinds}
    oracle = UtilityOracle(loaded, OracleSettings())
    for kind, context, question in tqdm(prompts, unit="context", mininterval=5):
        path = store / f"{kind}-{hash_json([about, [context, question]])}.safetensors"
        found[kind].append(read_or_measure(oracle, scorer, protection, context, question, path))
    return found


def read_or_measure(
    oracle: UtilityOracle,
    scorer: Scorer,
    protection: Protection,
    context: TokenIds,
    question: TokenIds,
    path: Path,
) -> Ranked:
    """path: the file of these token ids."""
    if not path.exists():
        measured = oracle.prefill(context, [scorer])
        scores, order = measured.scores(scorer, protection), measured.order(scorer, protection)
        worth = measured.utility(question) / measured.units
        parts = {"scores": scores.gather(-1, order), "worth": worth.gather(-1, order)}
        write_tensors(path, {name: part.float().numpy() for name, part in parts.items()}, {})
    with reading(path, "file of a measured context (remove it to measure anew)"):
        return Ranked(**read_tensors(path)[0])
