"""How much budget tables of other calibrations agree about the heads: lengths, kinds of text, seeds, protections.

    python -m scripts.studies.agreement --name MODEL shipped=models/MODEL/tables repeating=runs/tables/reconstruct/MODEL

Each argument is NAME=FOLDER of tables of one model. It writes docs/data/NAME-agreement.json and prints two numbers for
each pair of tables of a scorer, over all heads, at 20% kept: the rank correlation of what they keep, and the part of
what one keeps that the other keeps in other heads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from evals.text import table
from lukv.artifacts import write_atomically
from lukv.budgets.table import BudgetTable
from scripts.studies.fidelity import DOCS, SHARE, compare_rankings


def read_shares(folders: Mapping[str, Path], scorer: str) -> dict[str, np.ndarray]:
    """What each head keeps at 20% by this scorer's table in each folder that has one.

    Raises ValueError where the tables are of models with other heads.
    """
    files = {name: folder / f"{scorer}.safetensors" for name, folder in folders.items()}
    shares = {name: BudgetTable.load(file).shares(SHARE) for name, file in files.items() if file.is_file()}
    shapes = {name: kept.shape for name, kept in shares.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"tables of models with other layers and KV heads cannot be compared: {shapes}")
    return shares


def compare_shares(shares: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each pair of tables, "ONE, OTHER": the part of what one keeps that the other keeps in other heads, 0 to 1."""
    parts = {name: kept / kept.sum() for name, kept in shares.items()}
    pairs = combinations(parts, 2)
    return {f"{a}, {b}": round(float(np.abs(parts[a] - parts[b]).sum() / 2), 3) for a, b in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("tables", nargs="+", metavar="NAME=FOLDER", help="tables of one model, two at least")
    parser.add_argument("--name", required=True, help="of the data file: docs/data/NAME-agreement.json")
    parser.add_argument("--scorer", default="keydiff", help="whose tables are compared")
    asked = parser.parse_args()
    folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in asked.tables)}
    try:
        shares = read_shares(folders, asked.scorer)
    except ValueError as error:
        parser.error(str(error))
    if len(shares) < 2:
        parser.error(f"{len(shares)} of {len(folders)} folders have {asked.scorer}.safetensors: two are needed")
    ranks, moved = compare_rankings(shares), compare_shares(shares)
    content = {"scorer": asked.scorer, "kept": SHARE, "rank correlation": ranks, "moved": moved}
    write_atomically(DOCS / "data" / f"{asked.name}-agreement.json", json.dumps(content, indent=1).encode())
    rows = [[pair, f"{ranks[pair]:.2f}", f"{moved[pair]:.2f}"] for pair in ranks]
    print(table([["tables", "rank correlation", "kept elsewhere"], *rows]))


if __name__ == "__main__":
    main()
