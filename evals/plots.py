"""Every picture that evaluation and calibration draw, with matplotlib and without a display."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import IO, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from evals.looks import find_look
from lukv.budgets.table import BudgetTable

matplotlib.rcParams |= {"pdf.fonttype": 42, "svg.hashsalt": "lukv"}  # fonts that journals take; the same file each time

Row = Mapping[str, Any]

Heads = np.ndarray | Sequence[Sequence[float]]
"""[layers, heads], each 0..1."""

COSTS = {
    "ttft_s": (1e3, "time to first token (ms)"),
    "tpot_s": (1e3, "time per token (ms)"),
    "cache_bytes": (2**-20, "cache (MiB)"),
    "peak_bytes": (2**-20, "peak memory (MiB)"),
}


def draw_costs(rows: Sequence[Row], title: str, path: Path) -> None:
    """Times and memory of every method in four panels, over the context's length in tokens (logarithmic).

    rows: {label, context_tokens, ttft_s, tpot_s, cache_bytes, peak_bytes}, in seconds and bytes.
    """
    figure, panels = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    for axes, (key, (factor, name)) in zip(panels.flat, COSTS.items(), strict=True):
        for label in labels:
            mine = sorted((r for r in rows if r["label"] == label), key=lambda r: r["context_tokens"])
            y = [factor * r[key] for r in mine]
            axes.plot([r["context_tokens"] for r in mine], y, label=label, **find_look(label).line())
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(bottom=0)
        axes.set(ylabel=name, xlabel="context (tokens)" if key in list(COSTS)[2:] else "")
        axes.grid(alpha=0.25)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right center", frameon=False)
    save(figure, title, path)


def draw_heads(
    panels: Mapping[str, Heads],
    title: str,
    path: Path | IO[bytes],
    *,
    columns: int = 4,
    heads: str = "KV head",
    scale: str = "kept share",
    texts: Mapping[str, Sequence[Sequence[str]]] | None = None,
    **saving: Any,
) -> None:
    """Heat maps of one number (0..1) for each head, all in one colour scale. Layer 0 is at the top.

    panels   name -> [layers, heads]
    columns  panels side by side, at most
    heads    what a column of a panel is
    scale    what the colours mean
    texts    what to write into each square, shaped as the panels
    saving   what save takes: description, formats
    """
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(2.4 * columns + 1, 2.1 * lines + 0.6), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(grid.flat, panels.items(), strict=False):
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axes.set_title(break_lines(name, 28), fontsize=8)
        axes.set_xlabel(heads, fontsize=8)
        axes.set_ylabel("layer", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if texts is not None:
            for (layer, head), value in np.ndenumerate(values):
                colour = "black" if value > 0.6 else "white"
                axes.text(head, layer, texts[name][layer][head], ha="center", va="center", fontsize=6, color=colour)
    shrink = min(1, 3 / lines)  # of many lines: beside the first three
    figure.colorbar(image, ax=grid.ravel().tolist(), label=scale, shrink=shrink, aspect=20, anchor=(0, 1))
    save(figure, title, path, **saving)


def draw_budgets(table: BudgetTable, path: Path, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.5)) -> None:
    """The share that each KV head keeps at several overall budgets (shares kept)."""
    panels = {f"{100 * budget:g}% kept": table.shares(budget) for budget in budgets}
    draw_heads(panels, f"Head budgets: {describe(table)}", path)


def draw_loss_curves(table: BudgetTable, path: Path, heads: Sequence[tuple[int, int]] | None = None) -> None:
    """The mean loss curve of some heads with its hull. Both are shares of the head's own utility.

    heads   pairs (layer, KV head). By default up to six: from the head that keeps least at budget 0.2 to the one that
            keeps most

    Raises ValueError for a table without curves.
    """
    if heads is None:
        order = np.argsort(table.shares(0.2), axis=None, kind="stable")
        ranks = np.unique(np.linspace(0, len(order) - 1, min(6, len(order))).astype(int))
        heads = [divmod(int(i), table.kv_heads) for i in order[ranks]]
    columns = min(3, len(heads))
    rows = -(-len(heads) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(3.1 * columns, 2.6 * rows),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axis, (layer, head) in zip(axes.flat, heads, strict=False):
        discarded, loss, corners = table.loss_curve(layer, head)
        whole = loss[-1] or 1.0
        axis.plot(100 * discarded, loss / whole, linewidth=1.6, label="mean loss")
        axis.plot(
            100 * discarded[corners], loss[corners] / whole, color="tab:orange", marker=".", linewidth=0.9, label="hull"
        )
        axis.set_title(f"layer {layer}, head {head}: utility {loss[-1]:.2g}", fontsize=8)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(heads) :]:
        axis.set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.supxlabel("discarded (% of the head's entries, worst-ranked first)", fontsize=9)
    figure.supylabel("utility thrown away (share)", fontsize=9)
    save(figure, f"Loss curves: {describe(table)}", path)


FORMATS: Mapping[str, Mapping[str, Any]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What a figure is written as, and the metadata to leave out, so that the same figure is the same file."""


def save(
    figure: Figure, title: str, path: Path | IO[bytes], description: str | None = None, formats: Iterable[str] = FORMATS
) -> None:
    """Write the figure and forget it. Missing folders are made. A file without a name is a PNG.

    formats      endings of the files beside `path`, whose own ending is replaced
    description  a text in the PNG's metadata, where nobody sees it
    """
    whole = title.replace("n = ", "n\u00a0=\u00a0")
    figure.suptitle(fill(whole, int(13 * figure.get_figwidth()), break_on_hyphens=False), fontsize=9)
    about = {"Description": description} if description else {}
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the same layout in each format, and found once
        for ending in formats:
            metadata = {**FORMATS[ending], **(about if ending == ".png" else {})}
            figure.savefig(path.with_suffix(ending), dpi=130, metadata=metadata)
    else:
        figure.savefig(path, dpi=130)
    plt.close(figure)


def break_lines(text: str, width: int) -> str:
    """The text in lines of at most `width` characters, broken after a space, comma, hyphen or underscore. A longer word
    is not broken."""
    lines = [""]
    for part in re.findall(r"[^ ,_-]*[ ,_-]*", text):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def describe(table: BudgetTable) -> str:
    about = table.metadata
    return f"{about['scorer']} on {about['model']}" if "scorer" in about else "a table without metadata"
