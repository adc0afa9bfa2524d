"""The training log as a figure: loss, and exact answers of some tasks, against tokens trained on.

python -m scripts.studies.training_curve                # training_log.jsonl -> docs/figures/training_curve.png
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from models.tiny.tokenizer import FOLDER

SHOWN = {
    "one needle": ("single_noise", "single_prose"),
    "four keys": ("multikey_prose",),
    "haystack of needles": ("multikey_needles",),
    "four values": ("multivalue_noise", "multivalue_prose"),
    "four keys at once": ("multiquery_noise", "multiquery_prose"),
    "variable tracking": ("vt",),
    "one uuid": ("single_uuid",),
}
FIGURE = FOLDER.parents[1] / "docs" / "figures" / "training_curve.png"


def read(path: Path) -> tuple[list[tuple[float, dict[str, Any]]], list[tuple[float, dict[str, Any]]]]:
    """The log's lines of loss and its lines of evaluation, each with the millions of tokens trained on until then."""
    losses, scores, tokens, step = [], [], 0.0, 0
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if "answer_loss" in line:
            tokens += line["tokens"] * (line["step"] - step) / 1e6
            step = line["step"]
            losses.append((tokens, line))
        else:
            scores.append((tokens, line))
    return losses, scores


def draw(path: Path) -> None:
    from matplotlib.figure import Figure  # half a second

    losses, scores = read(FOLDER / "training_log.jsonl")
    figure = Figure(figsize=(8.4, 5.2), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.plot([x for x, _ in losses], [line["answer_loss"] for _, line in losses], lw=1, color="k")
    above.set_ylabel("answer loss")
    above.set_yscale("log")
    for name, tasks in SHOWN.items():
        found = [(x, sum(line[t] for t in tasks) / len(tasks)) for x, line in scores if all(t in line for t in tasks)]
        below.plot(*zip(*found, strict=True), marker="o", ms=3, lw=1, label=name)
    for before, after in pairwise(scores):
        if before[1]["evaluated_at"] != after[1]["evaluated_at"]:
            below.axvline(after[0], color="0.85", lw=1, zorder=0)
            below.annotate(f"{after[1]['evaluated_at']} tokens", (after[0], 1.03), fontsize=7, rotation=30)
    below.set_ylabel("answered exactly (16 samples)")
    below.set_xlabel("million tokens trained on")
    below.set_ylim(-0.02, 1.25)
    below.legend(fontsize=7, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.16))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    draw(FIGURE)
