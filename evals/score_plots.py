"""Score against budget: a line a method, named at its end; many methods in small multiples, a panel for each scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from evals.looks import find_look, find_name, find_scorer
from evals.plots import plt, save

Row = Mapping[str, Any]
Lines = Mapping[str, Sequence[Row]]

AXES = {
    "kept_share": (100, "cache kept (% of the prompt's entries)"),
    "cache_bytes": (2**-20, "cache (MiB a context)"),
    "cache_share": (100, "cache (% of the full cache's bytes in the model's dtype)"),
}
"""What a score can be drawn against: the factor from a row's value to the axis's, and the axis's name."""

NARROW = 1.1
"""Up to this ratio of the largest to the smallest value, all are one budget, which methods meet to an entry or two."""

TOGETHER = 8
"""Lines in one panel, at most: more cannot be told apart."""

DECADE = 10
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""


def draw_scores(
    x: str,
    lines: Lines,
    full: Row | None,
    title: str,
    path: Path,
    names: Mapping[str, str] | None = None,
    **saving: Any,
) -> None:
    """The mean score (per cent) of each method over x, with its 95% interval. The full cache is a dashed level.

    x       a key of AXES: what each row is placed by
    lines   label -> rows with this x, score and ci95 (shares and scores in 0..1)
    full    the full cache's row: score and ci95
    names   label or scorer -> what the figure calls it, before evals.looks.find_name's own
    saving  what evals.plots.save takes: description, formats
    """
    names = names or {}
    panels = split_panels(lines, names)
    columns = min(2, len(panels))
    size = (4.6 * columns + 1.2, 3.0 * -(-len(panels) // columns) + (0.4 if len(panels) > 1 else 1.3))
    figure, grid = plt.subplots(
        -(-len(panels) // columns), columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, own) in zip(grid.flat, panels.items(), strict=False):
        for label in lines.keys() - own:
            px, py, _ = place(x, lines[label])
            axes.plot(px, py, color="0.88", linewidth=1, zorder=0)
        for label in own:
            px, py, bars = place(x, lines[label])
            axes.errorbar(px, py, bars, capsize=2, elinewidth=0.8, **find_look(label).line())
        if full is not None:
            draw_full(axes, full)
        axes.set_title(name, fontsize=9, loc="left")
    scale(x, lines, grid)  # after all that has to be inside
    figure.supxlabel(AXES[x][1], fontsize=10)
    figure.supylabel("mean score (%)", fontsize=10)
    figure.draw_without_rendering()  # names are set by the panels' heights, which the layout decides
    for axes, own in zip(grid.flat, panels.values(), strict=False):
        ends = {find_name(label, names): (find_look(label).colour, place(x, lines[label])) for label in own}
        name_ends(axes, {name: (colour, found[1][-1]) for name, (colour, found) in ends.items()})
    save(figure, title, path, **saving)


def split_panels(lines: Lines, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Title of a panel -> labels in it, the best first. Up to TOGETHER lines are one panel without a title; more have
    a panel for each scorer, and scorers of one line share panels."""
    ordered = sorted(lines, key=lambda label: -max(row["score"] for row in lines[label]))
    if len(ordered) <= TOGETHER:
        return {"": ordered}
    by_scorer: dict[str, list[str]] = {}
    for label in ordered:
        by_scorer.setdefault(find_scorer(label), []).append(label)
    alone = [label for labels in by_scorer.values() if len(labels) == 1 for label in labels]
    panels = {find_name(s, names): labels for s, labels in by_scorer.items() if len(labels) > 1}
    if alone:
        panels["other scorers" if panels else "each with a scorer of its own"] = alone
    cut = {
        name: [labels[first : first + TOGETHER] for first in range(0, len(labels), TOGETHER)]
        for name, labels in panels.items()
    }
    return {
        f"{name} ({i} of {len(parts)})" if len(parts) > 1 else name: part
        for name, parts in cut.items()
        for i, part in enumerate(parts, 1)
    }


def place(x: str, rows: Sequence[Row]) -> tuple[list[float], list[float], list[list[float]]]:
    """(x, y, bars below and above) of a line, in the units of the axes."""
    ordered = sorted(rows, key=lambda row: row[x])
    y = [100 * row["score"] for row in ordered]
    below = [max(100 * (row["score"] - row["ci95"][0]), 0) for row in ordered]
    above = [max(100 * (row["ci95"][1] - row["score"]), 0) for row in ordered]
    return [AXES[x][0] * row[x] for row in ordered], y, [below, above]


def scale(x: str, lines: Lines, grid: np.ndarray) -> None:
    """The same axes for all panels, a tick at each budget that is a round number. Logarithmic over a decade or more.

    Of one budget alone the axis still shows some width: 20.00 and 20.01% stand beside each other, not at its two ends.
    """
    values = [AXES[x][0] * row[x] for rows in lines.values() for row in rows]
    budgets = sorted({float(f"{value:.2g}") for value in values})
    least, most = min(values), max(values)
    wide = most / least >= DECADE
    told = len(budgets) <= TOGETHER and all(abs(v / float(f"{v:.2g}") - 1) < 0.01 for v in values)
    for axes in grid.flat:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        if wide:
            axes.set_xscale("log")
        if most < NARROW * least:
            axes.set_xlim(least / NARROW, most * NARROW)
        if told:
            axes.xaxis.set_major_locator(FixedLocator(budgets))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.spines[["top", "right"]].set_visible(False)


def draw_full(axes: Axes, full: Row) -> None:
    """The full cache: a dashed level with its interval, named at the left, where no line ends."""
    level = 100 * full["score"]
    axes.axhline(level, color="black", linewidth=1, linestyle="--", zorder=1)
    axes.axhspan(100 * full["ci95"][0], 100 * full["ci95"][1], color="black", alpha=0.06, linewidth=0)
    at = axes.get_yaxis_transform()
    axes.annotate("full cache", (0.01, level), (0, 2), fontsize=8, xycoords=at, textcoords="offset points", va="bottom")


def name_ends(axes: Axes, ends: Mapping[str, tuple[str, float]]) -> None:
    """Write each line's name at its right end, moved up or down so that no name covers another.

    ends: name -> (colour, y of the line's last point).
    """
    _, top = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi  # inches
    step = top * 0.125 / height  # of a line of text
    ordered = sorted(ends.items(), key=lambda end: end[1][1])
    heights = spread([y for _, (_, y) in ordered], step)
    right = axes.get_xlim()[1]
    for (name, (colour, y)), at in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (right, y),
            (8, (at - y) / top * height * 72),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
        )


def spread(heights: Sequence[float], step: float) -> list[float]:
    """Ascending heights moved as little as possible, until each is at least `step` above the one before.

    Neighbours that are too close form a block around their mean; blocks that meet are joined.
    """
    blocks: list[list[float]] = []  # of the heights it stands for
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and bottom(blocks[-1], step) - top_of(blocks[-2], step) < step:
            last = blocks.pop()
            blocks[-1] += last
    return [bottom(block, step) + step * i for block in blocks for i in range(len(block))]


def bottom(block: Sequence[float], step: float) -> float:
    """Where the first of a block's names stands."""
    return sum(block) / len(block) - step * (len(block) - 1) / 2


def top_of(block: Sequence[float], step: float) -> float:
    return bottom(block, step) + step * (len(block) - 1)
