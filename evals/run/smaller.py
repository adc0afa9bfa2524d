"""The finished run that a run with a larger limit= can begin with: the same experiment on fewer samples."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from evals.run.identity import is_of, read_cached
from evals.run.run_id import make_name
from evals.run.settings import Run


def find_smaller(run: Run) -> Path | None:
    """The folder of the same experiment, finished, with the largest limit below this run's. None if there is none."""
    model, method, *_ = make_name(run).split("__")
    found = {}
    for result in sorted(Path(run["runs"]).glob(f"{glob.escape(f'{model}__{method}')}__*/result.json")):
        limit = read_limit(result.parent)
        if limit is None or (run["limit"] is not None and limit >= run["limit"]):
            continue
        if is_of(result.parent, replace(run, config={**run.config, "limit": limit})):
            found[limit] = result.parent
    return found[max(found)] if found else None


def read_limit(folder: Path) -> int | None:
    """The limit= that a run was made with; None without one, or where its settings cannot be read."""
    try:
        limit = read_cached(folder / "config.yaml").get("limit")
    except (ValueError, OSError):  # whoever opens this folder is told
        return None
    return limit if isinstance(limit, int) else None
