"""Heat maps of scores over length and depth: a panel a method, a row a budget, one scale for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from evals.grid import Grid
from evals.plots import break_lines, plt, save

Panels = Mapping[str, Mapping[str, Grid]]
"""Row (a budget) -> method -> its grid. All have the same lengths and depths."""

WIDTH = 11
"""Of all panels that stand side by side, in inches, at most."""

COLOURS = "viridis"
"""From dark to light in equal steps: it is told by the colour-blind, and in grey."""

SQUARE = (0.33, 0.21)
"""Width and height of a square, in inches: room for a number of three digits."""

WIDEST = 12
"""Squares that are drawn at that width. More are narrower, and have no numbers."""


def draw_grids(full: Grid | None, panels: Panels, title: str, path: Path, **saving: Any) -> None:
    """Draw the full cache once, at the top left, then the methods at each budget. Methods that do not fit beside each
    other go on below, with all their budgets.

    saving: what evals.plots.save takes: description, formats
    """
    methods = list(dict.fromkeys(name for row in panels.values() for name in row))
    one = full or next(grid for row in panels.values() for grid in row.values())
    wide, high = min(len(one.lengths), WIDEST) * SQUARE[0], max(len(one.depths), 3) * SQUARE[1]
    first = 0 if full is None else 1
    blocks = cut_evenly(methods, max(1, int(WIDTH / (wide + 0.25)) - first))
    lines = [(row, block) for block in blocks for row in panels or [""]]
    columns = first + max(map(len, blocks))
    figure, axes = plt.subplots(
        len(lines),
        columns,
        figsize=(columns * (wide + 0.25) + 1.3, len(lines) * (high + 0.3) + 0.9),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (row, block) in enumerate(lines):
        top, low = i % len(panels or [""]) == 0, (i + 1) % len(panels or [""]) == 0
        for j, name in enumerate(block, first):
            if name in panels[row]:
                image = draw_grid(axes[i, j], panels[row][name], name if top else "", j == first, low)
        axes[i, min(first, columns - 1)].set_ylabel(row, fontsize=8)
    if full is not None:
        image = draw_grid(axes[0, 0], full, "full cache", True, True)
    figure.supxlabel("length (tokens of prompt and answer; 1k = 1024)", fontsize=9)
    figure.supylabel("depth of the needle", fontsize=9)
    shrink = min(1.0, 2 / len(lines))
    figure.colorbar(image, ax=axes.ravel().tolist(), label="facts found (%)", shrink=shrink, anchor=(0, 1))
    save(figure, title, path, **saving)


def cut_evenly(names: Sequence[str], most: int) -> list[list[str]]:
    """In as few parts of at most `most` as can be, all of about the same size; one empty part of nothing.

    >>> cut_evenly("abcdef", 4)
    [['a', 'b', 'c'], ['d', 'e', 'f']]
    """
    parts = max(1, -(-len(names) // most))
    size = max(1, -(-len(names) // parts))
    return [list(names[i : i + size]) for i in range(0, len(names), size)] or [[]]


def draw_grid(axes: Axes, grid: Grid, title: str, depths: bool, lengths: bool) -> AxesImage:
    """One panel: lengths across, depths down, the score of a square in per cent. depths, lengths: whether the axis has
    its numbers."""
    values = 100 * np.array(grid.scores, dtype=float)  # None becomes nan, which stays white
    axes.set_axis_on()
    image = axes.imshow(values, vmin=0, vmax=100, cmap=COLOURS, aspect="auto")
    axes.set_yticks(range(len(grid.depths)), [f"{100 * depth:g}%" for depth in grid.depths])
    axes.set_xticks(range(len(grid.lengths)), [name_length(length) for length in grid.lengths])
    axes.tick_params(labelsize=7, length=2, labelleft=depths, labelbottom=lengths)
    axes.set_title(break_lines(title, 8 * len(grid.lengths)), fontsize=8)
    if len(grid.lengths) <= WIDEST:
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "black" if value > 60 else "white"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    return image


def name_length(tokens: int) -> str:
    """
    >>> name_length(8192), name_length(1500)
    ('8k', '1500')
    """
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
