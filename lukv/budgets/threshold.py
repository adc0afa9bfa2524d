"""Threshold: keep what scores above a value that calibration has fixed, however much of a prompt that is.

    kept(tau) = mean over the contexts of the share of all entries that are protected or score above tau
    tau(b)    = the value with kept(tau) = b

One value serves all layers and heads, so scores must mean the same in all of them. KVzap (arXiv 2601.07891) and DMS
(arXiv 2506.05345) evict in this way, with scores that were trained for it; here it goes with any scorer. The budget
is met in the mean over the calibration's contexts. A prompt keeps more or less than that, and what it keeps is
reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores
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
from lukv.scoring import Scorer
from lukv.selection import Protection

KIND = "lukv thresholds"
GRID = 101
"""Thresholds for keeping 0%, 1% .. 100% in the mean."""
BINS = 2**16


@dataclass
class MeanThreshold:
    """A streaming histogram of scores. `state` holds it as plain arrays: `free` [BINS], the mean number of entries by
    score as shares of all of a context's entries, and `protected`, the same of protected entries; both summed over
    `contexts`.

    A bin holds the float32 scores with the same 16 leading bits. These bits, read as integers, have the floats' order.
    """

    state: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self.state or {"free": np.zeros(BINS), "protected": np.zeros(()), "contexts": np.zeros(())}

    def add(self, scores: Tensor, protected: Tensor, weight: float = 1.0) -> None:
        """Add one context: scores [layers, K, T] float32; protected [T] bool."""
        bins = number_bins(scores[..., ~protected])
        self.state["free"] += weight * np.bincount(bins, minlength=BINS) / scores.numel()
        self.state["protected"] += weight * float(protected.float().mean())
        self.state["contexts"] += weight

    def thresholds(self, metadata: Mapping[str, Any]) -> Thresholds:
        """tau for keeping 0%, 1% .. 100%. Raises ValueError if there is no context."""
        if not self.state["contexts"] > 0:
            raise ValueError("no context was measured: there is nothing to fix thresholds by")
        free, protected = (self.state[name] / self.state["contexts"] for name in ("free", "protected"))
        used = np.flatnonzero(free)
        bounds = np.union1d(used, used + 1)[::-1] if len(used) else np.array([BINS // 2])
        above = np.append(free[::-1].cumsum()[::-1], 0.0)[bounds]
        # inside a bin the scores are taken to be spread evenly
        values = np.interp(np.linspace(0, 1, GRID) - protected, above, find_edges(bounds))
        return Thresholds(values.astype(np.float32), dict(metadata))


def number_bins(scores: Tensor) -> np.ndarray:
    """The bin of each score, [n] int64, in the order of the scores."""
    plain = scores.detach().float().cpu() + 0.0  # minus zero is zero
    bits = plain.flatten().view(torch.int32).long().numpy()
    return (np.where(bits < 0, -(2**31) - bits - 1, bits) >> 16) + BINS // 2


def find_edges(bins: np.ndarray) -> np.ndarray:
    """[n] float64: the lowest score of these bins; behind the last bin of finite scores, the largest float."""
    first = (np.asarray(bins, dtype=np.int64) - BINS // 2) << 16
    bits = np.where(first < 0, -(2**31) - first - 1, first).astype(np.int32)
    return bits.view(np.float32).astype(np.float64).clip(max=np.finfo(np.float32).max)


@dataclass(frozen=True)
class Thresholds:
    """values [GRID] float32, falling: above which score an entry is kept, for keeping 0%, 1% .. 100% in the mean.
    metadata: what they were made for and how, as plain JSON."""

    values: np.ndarray
    metadata: dict[str, Any]

    def at(self, share: float) -> float:
        """The value for a kept share, linearly interpolated. Everything scores above it for a share of 1."""
        return -np.inf if share >= 1 else float(np.interp(share, np.linspace(0, 1, GRID), self.values))

    def save(self, path: str | Path) -> None:
        header = {"kind": KIND, "json": json.dumps(self.metadata, sort_keys=True)}
        write_tensors(path, {"thresholds": np.ascontiguousarray(self.values)}, header)

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Raises FileNotFoundError for a missing file, and ValueError for anything that is no file of thresholds."""
        path = Path(path)
        require(path, "file of thresholds")
        with reading(path, "file of thresholds"):
            tensors, header = read_tensors(path)
            values = tensors.get("thresholds")
            if header.get("kind") != KIND or values is None:
                raise ValueError(f"it holds {sorted(tensors)} and says it is {header.get('kind')!r}")
            if values.shape != (GRID,) or not np.isfinite(values).all() or (np.diff(values) > 0).any():
                raise ValueError(f"its thresholds {list(values.shape)} are not {GRID} numbers that fall")
            return cls(values, json.loads(header["json"]))


@dataclass
class ThresholdAllocator(Allocator):
    """Every head keeps the protected tokens and what scores above the threshold.

    path: the file that job=calibrate made for this model, scorer and protection. any_weights: use it for other weights
    of the same geometry too, such as another quantization of its checkpoint.
    """

    exact: ClassVar[bool] = False
    caveat: ClassVar[str] = (
        "allocator=threshold keeps what scores above a value: how much that is varies by prompt (kept_share in "
        "samples.jsonl and result.json), and the budget is met in the mean over the calibration's contexts"
    )
    path: str | Path
    any_weights: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.thresholds = Thresholds.load(self.path)

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        threshold = self.thresholds.at(float(budget.of(layer.tokens)))
        return ((layer.scores > threshold) | layer.protected).sum(-1).cpu()

    def check(self, model: Target, scorer: Scorer, protection: Protection) -> None:
        """Raise ValueError unless the thresholds were made for this model (config and weights), this scorer with its
        parameters, and this protection. With `any_weights` the weights are not compared."""
        wanted, command = describe(model, scorer, protection), calibrate_command(model.name, scorer.name)
        check_made_for(self.path, self.thresholds.metadata, wanted, command, "allocator", self.any_weights)
