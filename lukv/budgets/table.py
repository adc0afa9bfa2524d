"""BudgetTable: LU-KV's head budgets for one model and one scorer, in one safetensors file; and the allocator that
reads it.

A table holds, for every global pruning of 1% .. 99%, the share that each KV head of each layer keeps. The authors'
`.npy` files (arXiv 2602.08585) hold the same grid as *pruned* shares and nothing else; both are read, and kvpress
0.5.5's LUKVPress reads what `save_npy` writes. It then computes slightly other counts than we do: the nearest per
cent where we interpolate, each layer's own total where we keep the global one, and among protected tokens the earlier
one first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, largest_remainder
from lukv.artifacts import write_atomically
from lukv.budgets.solver import PRUNED_PERCENT, hulls
from lukv.eviction import Protection
from lukv.scoring import Scorer

KIND = "lukv budget table"
GRID = len(PRUNED_PERCENT)
ARRAYS = ("kept", "expected_loss", "lower_bound", "curve", "knots")


@dataclass(frozen=True)
class BudgetTable:
    """kept [99, layers, K] float64: kept shares at 1% .. 99% global pruning. expected_loss, lower_bound [99] float64:
    the certificate, in units of oracle utility (None for a table of the authors). curve [layers, K, M] float32: mean
    utility of the tokens that stand at each M-th of the ranking, best first, for figures (None if not measured).
    metadata: what it was made for and how, plain JSON. knots [B, 3] float64: the hulls of curve.py (None in a table of
    budgets)."""

    kept: np.ndarray
    expected_loss: np.ndarray | None = None
    lower_bound: np.ndarray | None = None
    curve: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    knots: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.kept.ndim != 3 or len(self.kept) != GRID or 0 in self.kept.shape:
            raise ValueError(f"a budget table has shape [99, layers, KV heads], this one {list(self.kept.shape)}")
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"the budget table's {name} has a NaN or an infinity")
        if self.kept.min() < 0 or self.kept.max() > 1:
            raise ValueError("the budget table has a share outside 0 .. 1")
        mean = self.kept.mean(axis=(1, 2))
        if (mean < 0.99 - PRUNED_PERCENT / 100).any() or (np.diff(mean) > 1e-6).any():
            raise ValueError(
                "the budget table's shares do not add up to its global budgets: is it kept shares as pruned ones?"
            )
        for name in ("expected_loss", "lower_bound"):
            array = getattr(self, name)
            if array is not None and array.shape != (GRID,):
                raise ValueError(f"the budget table's {name} has shape {list(array.shape)}, it must have [99]")
        if self.curve is not None and (self.curve.ndim != 3 or self.curve.shape[:2] != self.kept.shape[1:]):
            raise ValueError(
                f"the budget table's curve has shape {list(self.curve.shape)}, its budgets {list(self.kept.shape)}"
            )
        if self.knots is not None:
            heads = self.knots[:, 0] if self.knots.ndim == 2 and self.knots.shape[1] == 3 else np.zeros(0)
            if not np.array_equal(np.unique(heads), np.arange(self.kept[0].size)) or (np.diff(heads) < 0).any():
                raise ValueError(f"the budget table's knots are not those of {self.kept[0].size} heads")
            if not {"sink", "recent"} <= set(self.metadata):
                raise ValueError("the budget table has knots, but does not say which tokens were protected")

    @property
    def layers(self) -> int:
        return self.kept.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.kept.shape[2]

    def shares(self, budget: Fraction | float) -> np.ndarray:
        """[layers, K] float64: kept shares at a global budget (kept share), linear between the grid's points.

        Above 99% towards everything kept; below 1% the heads keep their proportions at 1%.
        """
        percent = 100 * (budget if isinstance(budget, Fraction) else Fraction(str(budget)))
        if not 0 < percent <= 100:
            raise ValueError(
                f"budget={float(budget)} is not a share: it must be > 0 and <= 1 (the part of the cache to KEEP)"
            )
        if percent < 1:
            return self.kept[-1] * float(percent)
        below = int(percent)
        part = float(percent - below)
        low, high = self._row(below), self._row(min(below + 1, 100))
        return low if part == 0 else (1 - part) * low + part * high

    def _row(self, percent: int) -> np.ndarray:
        """Kept shares at a whole per cent kept, 1 .. 100."""
        return np.ones_like(self.kept[0]) if percent == 100 else self.kept[GRID - percent]

    def loss_curve(self, layer: int, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For figures: discarded shares [M + 1] from 0 to 1, the mean loss there, and the indices of its hull's
        corners. The protected tokens, last to go, cost nothing here: they are never discarded. Raises ValueError
        without a curve."""
        if self.curve is None:
            raise ValueError("this table has no loss curves: only tables that job=calibrate made have them")
        utility = self.curve[layer, head].astype(np.float64)
        loss = np.concatenate([[0.0], np.cumsum(utility[::-1])])
        free = len(utility) - int(np.argmax(utility > 0)) if utility.any() else 0
        edges = hulls(utility[None], free)
        return np.arange(len(loss)) / len(utility), loss, np.append(edges.start, free)

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        write_atomically(path, save(present, {"kind": KIND, "json": json.dumps(self.metadata, sort_keys=True)}))

    def save_npy(self, path: str | Path) -> None:
        """Write the authors' format: [99, layers, K] float64 *pruned* shares at 1% .. 99% pruning, without
        metadata."""
        with Path(path).open("wb") as file:
            np.save(file, 1 - self.kept, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> BudgetTable:
        """Read a `.safetensors` table or an `.npy` of the authors. A file that is missing raises FileNotFoundError,
        anything that is not a whole and sound table ValueError."""
        path = Path(path)
        if not path.is_file():
            command = calibrate_command(model_of(path), path.name.split(".")[0])
            raise FileNotFoundError(f"no budget table at {path}: make it with `{command}`")
        try:
            return cls._load_npy(path) if path.suffix == ".npy" else cls._load_safetensors(path)
        except Exception as error:  # what a damaged file does to numpy's reader has no common kind
            raise ValueError(f"{path} is not a budget table: {' '.join(str(error).split())}") from error

    @classmethod
    def _load_npy(cls, path: Path) -> BudgetTable:
        pruned = np.load(path, allow_pickle=False)
        if not isinstance(pruned, np.ndarray) or pruned.dtype.kind != "f":
            raise ValueError("it holds no array of floats")
        kept = 1 - pruned.astype(np.float64)
        return cls(np.where(np.abs(kept - 0.5) < 0.5 + 1e-6, kept.clip(0, 1), kept))

    @classmethod
    def _load_safetensors(cls, path: Path) -> BudgetTable:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if header.get("kind") != KIND or "kept" not in arrays or not set(arrays) <= set(ARRAYS):
            raise ValueError(f"it holds {sorted(arrays)} and says it is {header.get('kind')!r}")
        return cls(**arrays, metadata=json.loads(header["json"]))


class Target(Protocol):
    """What a table is made for; lukv.model.LoadedModel is one."""

    @property
    def name(self) -> str: ...

    @property
    def config_hash(self) -> str: ...

    @property
    def weights_hash(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...


@dataclass
class TableAllocator(Allocator):
    """LU-KV's head budgets: the table's shares at the budget, as integers whose sum over all layers and heads is
    exactly round(budget * layers * K * T). Every head keeps an entry at least, where the budget has that many.
    Protected tokens are ranks, not a floor: a head with fewer entries than them keeps the sinks first.

    any_weights: take the table for other weights of the same geometry, too: another quantization of the checkpoint."""

    path: str | Path
    any_weights: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.table = BudgetTable.load(self.path)
        self._counts: dict[tuple[Budget, int], np.ndarray] = {}

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        if (layer.layers, layer.heads) != (self.table.layers, self.table.kv_heads):
            raise ValueError(self._refusal(f"{layer.layers} layers of {layer.heads} KV heads"))
        key = budget, layer.tokens
        if key not in self._counts:
            self._counts = {
                key: self.counts_at(budget, layer.tokens)
            }  # the last one: all layers of a prompt ask for it
        return torch.from_numpy(self._counts[key][layer.layer])

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        """[layers, K] int64: entries kept of a prompt of `tokens` tokens."""
        heads = self.table.layers * self.table.kv_heads
        total = budget.entries(tokens, heads)
        return largest_remainder(self.table.shares(budget.of(tokens)), total, upper=tokens, lower=int(total >= heads))

    def check(self, model: Target, scorer: Scorer, protection: Protection) -> None:
        """Raise ValueError unless the table was made for this model (its config and weights), this scorer with these
        parameters, and this protection. A table without metadata (the authors' files) is only checked for its shape,
        one with `any_weights` not for the weights."""
        make = f"make its table with `{calibrate_command(model.name, scorer.name)}`"
        if (model.layers, model.kv_heads) != (self.table.layers, self.table.kv_heads):
            asked = f"{model.name}, {model.layers} layers of {model.kv_heads} KV heads"
            raise ValueError(f"{self._refusal(asked)}: {make}")
        wanted = description(model, scorer, protection)
        if self.any_weights:
            del wanted["weights_hash"]
        for key, value in wanted.items() if self.table.metadata else ():
            made = self.table.metadata.get(
                key, value if key == "weights_hash" else None
            )  # tables of 2026-11-23 lack it
            if made == value:
                continue
            if key == "scorer_parameters" and isinstance(made, dict):  # what differs, and how to calibrate with it
                changed = [name for name in sorted({*made, *value}) if made.get(name) != value.get(name)]
                made, value = ({name: each.get(name) for name in changed} for each in (made, value))
                make += " and the scorer.NAME=VALUE of this run"
            if key == "weights_hash":
                make += ", or take it for these weights, too, with allocator.any_weights=true"
            raise ValueError(f"{self.path} was made for {key} {made}, not for {value}: {make}")

    def _refusal(self, asked: str) -> str:
        return f"{self.path} is for {self.table.layers} layers of {self.table.kv_heads} KV heads, not for {asked}"


def description(model: Target, scorer: Scorer, protection: Protection) -> dict[str, Any]:
    """What a table is good for: the part of its metadata that `TableAllocator.check` compares. A model that was trained
    further, or anew, is another one: its heads may have other tasks, and nothing else would tell."""
    whole = protection.over(scorer)
    return {
        "config_hash": model.config_hash,
        "weights_hash": model.weights_hash,
        "scorer": scorer.name,
        "scorer_parameters": scorer.parameters(),
        "sink": whole.sink,
        "recent": whole.recent,
    }


def model_of(path: Path) -> str:
    """The model's name in tables/MODEL/SCORER.safetensors and in MODEL/tables/SCORER.safetensors."""
    folder = path.absolute().parent
    return folder.name if folder.parent.name == "tables" else folder.parent.name if folder.name == "tables" else "MODEL"


def calibrate_command(model: str, scorer: str) -> str:
    return f"python run.py job=calibrate model={model} scorer={scorer} job.save=true"
