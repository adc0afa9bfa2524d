"""Figures of one budget table, for job=calibrate, reports and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.harness.plots import finish, plt
from lukv.table import BudgetTable


def head_budgets(table: BudgetTable, path: Path, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.5)) -> None:
    """Heat maps, layer x KV head, of the share (per cent) each head keeps at several overall budgets."""
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(1.5 + 2.2 * len(budgets), 3.4), layout="constrained", sharey=True, squeeze=False
    )
    for axis, budget in zip(axes[0], budgets, strict=True):
        shown = axis.imshow(100 * table.shares(budget), vmin=0, vmax=100, cmap="viridis", aspect="auto", origin="lower")
        axis.set(xlabel="KV head", title=f"{100 * budget:g}% kept")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("layer")
    figure.colorbar(shown, ax=axes[0], label="kept in this head (%)")
    finish(figure, f"Head budgets: {_of(table)}", path)


def loss_curves(table: BudgetTable, path: Path, heads: Sequence[tuple[int, int]] | None = None) -> None:
    """The mean loss curve of some (layer, KV head) with its hull, each as a share of the head's own utility. heads: by
    default up to six, from the one that keeps least at 20% to the one that keeps most. Raises ValueError for a table
    without curves."""
    if heads is None:
        order = np.argsort(table.shares(0.2), axis=None, kind="stable")
        places = np.unique(np.linspace(0, len(order) - 1, min(6, len(order))).astype(int))
        heads = [divmod(int(i), table.kv_heads) for i in order[places]]
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
    finish(figure, f"Loss curves: {_of(table)}", path)


def _of(table: BudgetTable) -> str:
    about = table.metadata
    return f"{about['scorer']} on {about['model']}" if "scorer" in about else "a table without metadata"
