"""BudgetTable: LU-KV's head budgets for one model and one scorer, in one safetensors file. And TableAllocator, which
reads it.

For each global pruning of 1% .. 99% a table holds the share that each KV head of each layer keeps. The authors' `.npy`
files (arXiv 2602.08585) hold the same grid as *pruned* shares and nothing else. Both are read, and LUKVPress of kvpress
0.5.5 reads what `save_npy` writes. LUKVPress then keeps slightly other counts than `TableAllocator`: it takes the
nearest per cent where we interpolate, it keeps each layer's total where we keep the global one, and it prefers the
earlier one of two protected tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, largest_remainder
from lukv.artifacts import (
    Target,
    calibrate_command,
    check_made_for,
    describe,
    read_tensors,
    reading,
    require,
    write_tensors,
)
from lukv.budgets.solver import PRUNED_PERCENT, hulls
from lukv.scoring import Scorer
from lukv.selection import Protection

KIND = "lukv budget table"
GRID = len(PRUNED_PERCENT)
ARRAYS = ("kept", "expected_loss", "lower_bound", "curve", "knots")


@dataclass(frozen=True)
class BudgetTable:
    """Kept shares, and what is known about them.

    kept [99, layers, K] float64: kept shares at 1% .. 99% global pruning.
    expected_loss, lower_bound [99] float64: the certificate, in units of utility. None in a table of the authors.
    curve [layers, K, M] float32: mean utility in M equal parts of the ranking, best first. None if not measured.
    metadata: what the table was made for and how, as plain JSON.
    knots [B, 3] float64: the hulls of curve.py (head, start, price). None in a table of kind `budgets`.

    Raises ValueError for arrays that do not fit together.
    """

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
        """[layers, K] float64: kept shares at a global kept share, linearly interpolated between the grid's points.

        Above 99% the shares approach 1. Below 1% the heads keep their proportions at 1%. Raises ValueError for a budget
        outside (0, 1].
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
        """[layers, K]: kept shares at a global kept share of 1 .. 100 whole per cent."""
        return np.ones_like(self.kept[0]) if percent == 100 else self.kept[GRID - percent]

    def loss_curve(self, layer: int, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For figures: discarded shares [M + 1] from 0 to 1, the mean loss at each, and the hull's corners (indices).

        The protected tokens come last and add no loss here, because they are never discarded. Raises ValueError for a
        table without a curve.
        """
        if self.curve is None:
            raise ValueError("this table has no loss curves: only tables that job=calibrate made have them")
        utility = self.curve[layer, head].astype(np.float64)
        loss = np.concatenate([[0.0], np.cumsum(utility[::-1])])
        free = len(utility) - int(np.argmax(utility > 0)) if utility.any() else 0
        edges = hulls(utility[None], free)
        return np.arange(len(loss)) / len(utility), loss, np.append(edges.start, free)

    def save(self, path: str | Path) -> None:
        """Write the table as a safetensors file, atomically."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        write_tensors(path, present, {"kind": KIND, "json": json.dumps(self.metadata, sort_keys=True)})

    def save_npy(self, path: str | Path) -> None:
        """Write the authors' format, which has no metadata: *pruned* shares [99, layers, K] float64."""
        with Path(path).open("wb") as file:
            np.save(file, 1 - self.kept, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> BudgetTable:
        """Read a `.safetensors` table, or an `.npy` of the authors. Raises FileNotFoundError for a missing file, and
        ValueError for anything that is not a whole and sound table."""
        path = Path(path)
        require(path, "budget table")
        with reading(path, "budget table"):
            return cls._load_npy(path) if path.suffix == ".npy" else cls._load_safetensors(path)

    @classmethod
    def _load_npy(cls, path: Path) -> BudgetTable:
        pruned = np.load(path, allow_pickle=False)
        if not isinstance(pruned, np.ndarray) or pruned.dtype.kind != "f":
            raise ValueError("it holds no array of floats")
        kept = 1 - pruned.astype(np.float64)
        return cls(np.where(np.abs(kept - 0.5) < 0.5 + 1e-6, kept.clip(0, 1), kept))

    @classmethod
    def _load_safetensors(cls, path: Path) -> BudgetTable:
        arrays, header = read_tensors(path)
        if header.get("kind") != KIND or "kept" not in arrays or not set(arrays) <= set(ARRAYS):
            raise ValueError(f"it holds {sorted(arrays)} and says it is {header.get('kind')!r}")
        return cls(**arrays, metadata=json.loads(header["json"]))


@dataclass
class TableAllocator(Allocator):
    """LU-KV's head budgets: the table's shares at the budget, as integers.

    Their sum over all layers and heads is exactly round(budget * layers * K * T). Every head keeps at least one entry
    if the budget has one for each. Protection is a rank and not a floor: a head that keeps fewer entries than there are
    protected tokens keeps what `Protection.starved` says.

    path: a `.safetensors` table, an `.npy` of the authors, or a folder that has one table for `scorer`.
    any_weights: use the table for other weights of the same geometry too, such as another quantization of its
    checkpoint.
    """

    path: str | Path
    scorer: str = field(default="", kw_only=True)
    any_weights: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if Path(self.path).is_dir():
            self.path = find_table(Path(self.path), self.scorer)
        self.table = BudgetTable.load(self.path)
        self._counts: dict[tuple[Budget, int], np.ndarray] = {}

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        if (layer.layers, layer.heads) != (self.table.layers, self.table.kv_heads):
            raise ValueError(self._refusal(f"{layer.layers} layers of {layer.heads} KV heads"))
        key = budget, layer.tokens
        if key not in self._counts:
            # all layers of a prompt ask for the same counts, so the last ones are remembered
            self._counts = {key: self.counts_at(budget, layer.tokens)}
        return torch.from_numpy(self._counts[key][layer.layer])

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        """[layers, K] int64: how many entries each head keeps of a prompt of `tokens` tokens."""
        heads = self.table.layers * self.table.kv_heads
        total = budget.entries(tokens, heads)
        return largest_remainder(self.table.shares(budget.of(tokens)), total, upper=tokens, lower=int(total >= heads))

    def check(self, model: Target, scorer: Scorer, protection: Protection) -> None:
        """Raise ValueError unless the table was made for this model (config and weights), this scorer with its
        parameters, and this protection. A table without metadata, as the authors', is only checked for its shape, and
        with `any_weights` the weights are not compared."""
        command = calibrate_command(model.name, scorer.name)
        if (model.layers, model.kv_heads) != (self.table.layers, self.table.kv_heads):
            geometry = f"{model.name}, {model.layers} layers of {model.kv_heads} KV heads"
            raise ValueError(f"{self._refusal(geometry)}: make it with `{command}`")
        made_for, wanted = self.table.metadata, describe(model, scorer, protection)
        if not made_for:
            return
        any_weights = self.any_weights or "weights_hash" not in made_for  # tables of 2026-11-23 lack it
        check_made_for(self.path, made_for, wanted, command, "allocator", any_weights)

    @property
    def caveat(self) -> str | None:
        """What cannot be known of a table without metadata (the authors' files); None where it says what it is for."""
        if self.table.metadata:
            return None
        shape = f"{self.table.layers} layers of {self.table.kv_heads} KV heads"
        return (
            f"{self.path} says nothing of itself: it fits every model of {shape}, and whether it was made for this "
            f"one's weights, for this scorer with these parameters and for this protection cannot be checked"
        )

    def _refusal(self, other: str) -> str:
        return f"{self.path} is for {self.table.layers} layers of {self.table.kv_heads} KV heads, not for {other}"


def find_table(folder: Path, scorer: str) -> Path:
    """The one table of a folder that is named after the scorer: keydiff.safetensors, else keydiff*.npy, or by initials
    as the authors do (ea_... for expected_attention). Raises FileNotFoundError unless there is exactly one."""
    ours = folder / f"{scorer}.safetensors"
    if ours.is_file():
        return ours
    initials = "".join(word[0] for word in scorer.split("_") if word)
    found = sorted(folder.glob("*.npy"))
    named = [file for file in found if file.stem.split("_")[0] in (scorer, initials)]
    if len(named) != 1:
        there = ", ".join(file.name for file in named or found) or "none"
        what = f"{len(named)} tables" if named else "no table"
        raise FileNotFoundError(f"{folder} has {what} for scorer {scorer} (.npy files: {there}): name one file")
    return named[0]
