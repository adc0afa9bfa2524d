"""Figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MARKERS = "osD^v<>PX*hd"


def score_against_budget(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], full: Mapping[str, Any] | None, title: str, path: Path
) -> None:
    """One line per method: mean score (per cent) with its 95% interval over the kept share; the full cache as a level.

    lines: label -> rows with kept_share, score, ci95 (0..1).
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.5), layout="constrained")
    ordered = sorted(lines.items(), key=lambda item: -max(row["score"] for row in item[1]))
    for i, (label, rows) in enumerate(ordered):
        rows = sorted(rows, key=lambda row: row["kept_share"])
        x = [100 * row["kept_share"] for row in rows]
        y = [100 * row["score"] for row in rows]
        around = [[100 * (r["score"] - r["ci95"][0]) for r in rows], [100 * (r["ci95"][1] - r["score"]) for r in rows]]
        style: dict[str, Any] = {
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5,
            "linewidth": 1.4,
            "capsize": 2,
            "label": label,
        }
        axes.errorbar(
            x, y, [[max(e, 0) for e in side] for side in around], color=plt.get_cmap("tab20")(i % 20), **style
        )
    if full is not None:
        axes.axhline(100 * full["score"], color="black", linewidth=1, linestyle="--", label=full["method"] + " cache")
        axes.axhspan(100 * full["ci95"][0], 100 * full["ci95"][1], color="black", alpha=0.06)
    axes.set(xlabel="cache kept (% of the prompt's entries)", ylabel="mean score (%)")
    figure.suptitle("\n".join(wrap(title, 80)), fontsize=9)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
