"""Scores over a grid: how long the context is, and how deep in it the needle lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """scores, counts [depths][lengths]: the mean score (0..1) of a square's samples, None of none, and their number.

    lengths are in tokens, depths in 0..1, both ascending.
    """

    lengths: list[int]
    depths: list[float]
    scores: list[list[float | None]]
    counts: list[list[int]]


def make_grid(lines: Iterable[Mapping[str, Any]]) -> Grid | None:
    """The grid of a run: its lines of samples.jsonl, those of all tasks together. None where no needle has a depth."""
    squares: dict[tuple[int, float], list[float]] = {}
    for line in lines:
        if "depth" in line and "error" not in line:
            squares.setdefault((line["length"], line["depth"]), []).append(line["score"])
    return arrange({place: (sum(found) / len(found), len(found)) for place, found in squares.items()})


def arrange(squares: Mapping[tuple[int, float], tuple[float, int]]) -> Grid | None:
    """(length, depth) -> (score, number of samples) as a grid; None without a square."""
    if not squares:
        return None
    lengths, depths = (sorted({place[i] for place in squares}) for i in (0, 1))
    found = [[squares.get((int(length), depth), (None, 0)) for length in lengths] for depth in depths]
    scores, counts = ([[square[i] for square in row] for row in found] for i in (0, 1))
    return Grid([int(length) for length in lengths], depths, scores, counts)  # type: ignore[arg-type]


def count_square(grids: Iterable[Grid]) -> str:
    """How many samples a square has: "n = 4 a square", or the smallest to the largest."""
    counts = sorted({n for grid in grids for row in grid.counts for n in row if n})
    return f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} a square"
