"""What is fuzzed: for each target how values are drawn, and what must hold for every one of them.

A check may meet InputError or ValueError with one line; anything else that is raised is a finding. So is a case that
takes more than SECONDS of this process's time.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from baselines.adakv import AdaKV
from baselines.pyramidkv import PyramidKV
from evals.jsonl import METRICS, Jsonl
from evals.longbench.score import METRICS as LONGBENCH
from evals.longbench.score import parse_classes, score_file
from evals.rows import read_rows
from evals.run.compose import join_lines
from evals.run.files import read_json
from evals.run.folder import read_samples
from evals.run.instantiate import InputError
from evals.run.overrides import check_options, parse_override
from evals.run.run_id import join_name
from lukv.allocation import Budget, Uniform, largest_remainder, round_half_up
from lukv.budgets.solver import PRUNED_PERCENT, floor_of, kept_total, solve
from lukv.budgets.table import BudgetTable, TableAllocator
from lukv.conf import GROUPS
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Eviction, Protection
from tests.evals.conftest import Words
from tests.faults.mutate import Mutation, mutated, mutations

SECONDS = 10.0
SCRATCH = tempfile.TemporaryDirectory(prefix="lukv-fuzz-")  # gone with this process
FOLDER = Path(SCRATCH.name)


@dataclass(frozen=True)
class Target:
    """share: how much of all cases it gets."""

    draw: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    share: float = 1.0


def tried(do: Callable[[], Any]) -> tuple[Any, str]:
    """(what it gives, "") or (None, the one line that it is refused with)."""
    try:
        return do(), ""
    except ValueError as error:
        text = str(error) or repr(error)
    assert "\n" not in text.strip(), text
    return None, text


# --- the override parser's front

WORDS = st.sampled_from(
    [
        *(
            "method",
            "scorer",
            "budget",
            "budget_tokens",
            "model.path",
            "benchmark.tasks",
            "seed",
            "targets",
            "lukv",
            "tiny",
        ),
        *(
            "=",
            ",",
            "[",
            "]",
            "{",
            "}",
            "(",
            ")",
            ":",
            "~",
            "+",
            "++",
            "@",
            "'",
            '"',
            "\\",
            "$",
            "${",
            "}",
            "${seed}",
            " ",
        ),
        *(
            "glob(*)",
            "choice(1,2)",
            "range(1,3)",
            "interval(0,1)",
            "sort(3,1)",
            "null",
            "true",
            "nan",
            "1e999",
            "-0",
            "0x10",
        ),
        *("../..", "/", ".", "_target_", "os.system", "%", "#", "é", "\u202e", "\U0001f642", "\t"),
    ]
)
override = st.lists(WORDS | st.text(max_size=4), max_size=12).map("".join)
assigned = st.tuples(st.sampled_from([*GROUPS, "budget", "seed", "model.path", "x"]), override).map("=".join)


def check_overrides(texts: list[str]) -> None:
    """As overrides.parse_overrides reads them, before anything is composed."""
    said = "fine"
    try:
        parser = OverridesParser.create()
        check_options([parse_override(parser, text) for text in texts])
    except (InputError, HydraException, OmegaConfBaseException) as error:
        said = join_lines(error)
    assert said
    assert "\n" not in said


# --- files: a sound one, then bytes flipped, cut, doubled, put in


def sound_tables() -> dict[str, bytes]:
    utility = np.random.default_rng(0).random((2, 2, 95))
    solved = solve(utility, 100)
    table = BudgetTable(
        solved.kept / 100, solved.loss, solved.lower_bound, None, {"model": "tiny", "scorer": "keydiff"}
    )
    table.save(FOLDER / "sound.safetensors")
    table.save_npy(FOLDER / "sound.npy")
    return {suffix: (FOLDER / f"sound{suffix}").read_bytes() for suffix in (".safetensors", ".npy")}


SOUND = sound_tables()
head = st.tuples(st.sampled_from(sorted(SOUND)), mutations, st.booleans())


def check_table(case: tuple[str, list[Mutation], bool]) -> None:
    """in_header: the changes fall into the first 2 per cent of the file, where the format is described."""
    suffix, changes, in_header = case
    changes = [(kind, where / 50 if in_header else where, material) for kind, where, material in changes]
    path = FOLDER / f"fuzzed{suffix}"
    path.write_bytes(mutated(SOUND[suffix], changes))
    table, refusal = tried(lambda: BudgetTable.load(path))
    if refusal:
        assert str(path) in refusal
        return
    assert np.isfinite(table.kept).all()
    assert ((table.kept >= 0) & (table.kept <= 1)).all()
    counts = TableAllocator(path).counts_at(Budget(share=0.2), 100)
    assert counts.sum() == round_half_up(Budget(share=0.2).of(100) * 100 * counts.size)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = (
    "context",
    "question",
    "answers",
    "answer_prefix",
    "max_new_tokens",
    "task",
    "id",
    "pred",
    "all_classes",
    "length",
)
fields = st.dictionaries(st.sampled_from(COLUMNS), json_values, max_size=6)
GOOD = {"context": "Ann lives in Oslo.", "question": "Where?", "answers": ["Oslo"], "pred": "Oslo", "length": 5}
row = st.builds(lambda changed: {**GOOD, **changed}, fields) | fields | json_values
rows = st.lists(row, min_size=1, max_size=4).map(lambda values: "\n".join(map(json.dumps, values)).encode())
row_files = st.tuples(rows | st.binary(max_size=60), st.just([]) | mutations).map(lambda case: mutated(*case))


def check_rows(content: bytes) -> None:
    path = FOLDER / "qasper.jsonl"
    path.write_bytes(content)
    loaders: list[Callable[[], Any]] = [
        lambda: read_rows(path, {}),
        lambda: [each for task in Jsonl(str(path)).tasks(Words()) for each in task.samples],
        lambda: score_file(path, "official", False, True),
    ]
    for load in loaders:
        found, refusal = tried(load)
        assert bool(found) != bool(refusal)
        assert not refusal or str(path) in refusal


def check_records(content: bytes) -> None:
    """samples.jsonl and result.json with anything in them: read, or one line; what is whole is kept to the byte."""
    path = FOLDER / "samples.jsonl"
    path.write_bytes(content)
    for read in (lambda: read_samples(path, repair=True), lambda: read_json(path)):
        _, refusal = tried(read)
        assert not refusal or "samples.jsonl" in refusal
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]


# --- metrics

texts = st.text(max_size=60) | st.lists(
    st.sampled_from(
        ["the ", "a", "Paragraph 5", "段落3", "答案", ".", "\n", "`", "//", "#", "1", " ", "é", "\x00", "\u202e"]
    ),
    max_size=30,
).map("".join)
long_texts = st.tuples(texts.filter(bool), st.integers(1, 400)).map(lambda case: case[0] * case[1])
answers = st.lists(texts, min_size=1, max_size=3)


def check_metrics(case: tuple[str, list[str]]) -> None:
    prediction, references = case
    scores = {name: metric(prediction, references) for name, metric in METRICS.items()}
    for name, metric in LONGBENCH.items():
        if name in ("retrieval", "retrieval_zh") and not any(c.isdecimal() for c in references[0]):
            continue
        scores[f"longbench {name}"] = metric(prediction, with_number(name, references[0]), references)
    for name, score in scores.items():
        assert 0.0 <= score <= 1.0 + 1e-9, (name, score)
        assert not math.isnan(score)


def with_number(name: str, reference: str) -> str:
    """The data's answers to these tasks name a paragraph."""
    return {"retrieval": "Paragraph 5", "retrieval_zh": "段落5"}.get(name, reference)


def check_classes(case: Any) -> None:
    found, _ = tried(lambda: parse_classes(case, "here"))
    assert all(isinstance(name, str) for name in found or ())


def check_name(parts: list[str]) -> None:
    name = join_name(parts)
    assert name
    assert Path(name).name == name
    assert not name.startswith(".")
    assert len(name.encode()) <= 200


# --- allocators and the solver

numbers = (
    st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 1e-300, 1e300, 1e30, 5e-324, math.inf, math.nan, -1.0]) | st.floats()
)
sound_numbers = st.sampled_from([0.0, 1.0, 1.0, 0.5, 1e-12, 1e12]) | st.floats(0, 1e6)


weights = st.tuples(
    st.lists(numbers | sound_numbers, min_size=1, max_size=9),
    st.integers(-5, 500),
    st.integers(0, 80),
    st.integers(0, 3),
)


def check_remainder(case: tuple[list[float], int, int, int]) -> None:
    weights, total, upper, lower = case
    counts, refusal = tried(lambda: largest_remainder(np.array(weights), total, upper, lower))
    if refusal:
        sound = all(math.isfinite(w) and w >= 0 for w in weights)
        assert not sound or not lower * len(weights) <= total <= upper * len(weights)
        return
    assert counts.sum() == total
    assert (counts >= lower).all()
    assert (counts <= upper).all()


@dataclass(frozen=True)
class Given(Scorer):
    """Scores that are given."""

    values: Any = None

    def score(self, layer: PromptLayer) -> torch.Tensor:
        return self.values


layers = st.tuples(
    st.integers(1, 4),
    st.integers(1, 40),
    st.lists(numbers, min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(0, 6),
)
shares = st.integers(1, 1000).map(lambda n: Budget(share=n / 1000)) | st.integers(1, 60).map(lambda n: Budget(tokens=n))
ALLOCATORS = {"uniform": Uniform, "adakv": AdaKV, "pyramidkv": PyramidKV}


evictions = st.tuples(layers, shares, st.sampled_from(sorted(ALLOCATORS)))


def check_eviction(case: tuple[tuple[int, int, list[float], int, int], Budget, str]) -> None:
    (heads, tokens, values, sink, recent), budget, name = case
    scores = torch.tensor((values * (heads * tokens))[: heads * tokens], dtype=torch.float32).reshape(heads, tokens)
    keys = torch.zeros(heads, tokens, 2)
    eviction = Eviction(Given("given", values=scores), ALLOCATORS[name](), Protection(sink, recent), budget)
    layer = PromptLayer(0, 2, keys, keys, heads, 1.0)
    kept, refusal = tried(lambda: eviction.keep(layer))
    if refusal:
        assert not torch.isfinite(scores).all() or scores.abs().max() > 1e37
        return
    assert torch.isfinite(scores).all()
    assert kept.shape == (heads, tokens)
    if name != "pyramidkv":  # moves budget between layers
        assert int(kept.sum()) == budget.entries(tokens, heads)
    for head in range(heads):  # nothing that was thrown away is worth more than something that was kept
        free = ~Protection(sink, recent).mask(tokens)
        gone, stayed = scores[head][~kept[head] & free], scores[head][kept[head] & free]
        if len(gone) and len(stayed):
            assert gone.max() <= stayed.min()


utilities = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 60), st.integers(0, 8),
    st.lists(sound_numbers, min_size=1, max_size=20) | st.lists(numbers, min_size=1, max_size=6),
    st.sampled_from(["global", "layer"]), st.booleans(),
)  # fmt: skip


def check_solver(case: tuple[int, int, int, int, list[float], str, bool]) -> None:
    n, heads, free, protected, values, scope, polish = case
    tokens = free + protected
    if tokens == 0:
        return
    utility = np.array((values * (n * heads * free))[: n * heads * free]).reshape(n, heads, free)
    with np.errstate(over="ignore", invalid="ignore"):
        solved, refusal = tried(lambda: solve(utility, tokens, scope=scope, polish=polish))  # type: ignore[arg-type]
    if refusal:
        assert not (np.isfinite(utility).all() and (utility >= 0).all() and utility.sum() < 1e300)
        return
    floor = floor_of(tokens, protected)
    assert solved.kept.shape == (len(PRUNED_PERCENT), n, heads)
    assert (solved.kept >= floor).all()
    assert (solved.kept <= tokens).all()
    wanted = np.maximum(kept_total(n * heads * tokens), n * heads * floor)
    if scope == "layer":
        wanted = n * np.maximum(kept_total(heads * tokens), heads * floor)
    assert (solved.kept.sum(axis=(1, 2)) == wanted).all()
    size = max(1.0, float(solved.loss.max()))
    assert (solved.loss >= solved.lower_bound - 1e-9 * size).all()
    thrown = [
        sum(utility[i, k, max(0, solved.kept[t, i, k] - protected) :].sum() for i in range(n) for k in range(heads))
        for t in (0, 49, 98)
    ]
    np.testing.assert_allclose(solved.loss[[0, 49, 98]], thrown, rtol=1e-9, atol=1e-9 * size)


TARGETS: Mapping[str, Target] = {
    "override parser": Target(st.lists(override | assigned, min_size=1, max_size=3), check_overrides, 0.4),
    "budget table": Target(head, check_table, 1.5),
    "jsonl loaders": Target(row_files, check_rows, 1.5),
    "run records": Target(row_files, check_records, 1.5),
    "metrics, any Unicode": Target(st.tuples(texts, answers), check_metrics, 1.5),
    "metrics, very long": Target(
        st.tuples(long_texts, st.lists(long_texts, min_size=1, max_size=1)), check_metrics, 0.1
    ),
    "class lists": Target(json_values | st.lists(st.text(max_size=9)).map(str), check_classes, 1.0),
    "run names": Target(st.lists(st.text(max_size=90), min_size=1, max_size=6), check_name, 1.0),
    "rounding": Target(weights, check_remainder, 2.0),
    "allocators and selection": Target(evictions, check_eviction, 1.0),
    "solver": Target(utilities, check_solver, 1.0),
}
