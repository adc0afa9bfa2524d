"""Which finished runs a report is of: report.py --select KEY=VALUE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from evals.report.runs import Result, budget_label, keeps_all, label
from lukv.names import suggest_nearest

KEYS: Mapping[str, Callable[[Result], str]] = {
    "model": lambda r: str(r["model"]),
    "benchmark": lambda r: str(r["benchmark"]),
    "protocol": lambda r: str(r["protocol"]),
    "seed": lambda r: str(r["config"]["seed"]),
    "budget": budget_label,
    "method": label,
}

OF_EVICTION = ("budget", "method")
"""Keys that leave the full cache in: it is what the others stand beside."""


def select_results(results: Sequence[Result], wanted: Sequence[str]) -> list[Result]:
    """The results that meet every KEY=VALUE,VALUE in `wanted`. A value may be a pattern ("lukv*").

    Raises ValueError for a key or a value that no result has.
    """
    chosen = list(results)
    for text in wanted:
        key, _, values = text.partition("=")
        if key not in KEYS or not values:
            raise ValueError(
                f"--select {text}: write KEY=VALUE with one of {', '.join(KEYS)}.{suggest_nearest(key, KEYS)}"
            )
        there = sorted({KEYS[key](r) for r in results if not (key in OF_EVICTION and keeps_all(r))})
        for value in values.split(","):
            if not any(fnmatchcase(name, value) for name in there):
                raise ValueError(
                    f"--select {key}={value}: no finished run has it. There are {', '.join(there) or 'none'}."
                    f"{suggest_nearest(value, there)}"
                )
        chosen = [
            r
            for r in chosen
            if (key in OF_EVICTION and keeps_all(r))
            or any(fnmatchcase(KEYS[key](r), value) for value in values.split(","))
        ]
    return chosen
