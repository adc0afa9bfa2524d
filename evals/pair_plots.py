"""Heat maps of scores over scorers and allocators: a panel a budget, one scale for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.grid_plots import COLOURS
from evals.plots import plt, save

SQUARE = (0.5, 0.21)
"""Width and height of a square, in inches: room for a score with a decimal."""


def draw_pairs(
    panels: Mapping[str, Sequence[Sequence[float]]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: Path,
    **saving: Any,
) -> None:
    """Draw the panels side by side.

    panels          name (a budget) -> [rows, columns] scores in 0..1
    rows, columns   names of the scorers and allocators
    saving          what evals.plots.save takes: description, formats
    """
    wide, high = len(columns) * SQUARE[0], len(rows) * SQUARE[1]
    size = len(panels) * (wide + 0.2) + 2.6, high + 1.5
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis, (name, scores) in zip(axes.flat, panels.items(), strict=True):
        values = 100 * np.asarray(scores)
        image = axis.imshow(values, vmin=0, vmax=100, cmap=COLOURS, aspect="auto")
        axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(labelsize=8, length=2)
        for (y, x), value in np.ndenumerate(values):
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color=choose_ink(value))
    figure.colorbar(image, ax=axes.ravel().tolist(), label="score (%)", aspect=30)
    save(figure, title, path, **saving)


def choose_ink(value: float) -> str:
    """Black on the light end of the scale."""
    return "black" if value > 60 else "white"
