"""From settings to objects: the model, the method, the benchmark. What cannot be built is an InputError."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from hydra.utils import instantiate

from evals.harness.config import InputError, Run
from evals.task import Benchmark
from lukv.allocation import Budget
from lukv.backend.selection import Eviction
from lukv.model import LoadedModel, load


@contextmanager
def input_errors() -> Iterator[None]:
    """Faults met while building are the input's; the same faults later on are the run's."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError, ImportError, TypeError) as e:
        raise InputError(str(e.__cause__ or e) if type(e).__name__ == "InstantiationException" else str(e)) from e


def model(run: Run) -> LoadedModel:
    """Loaded once for all runs of a sweep that name the same model."""
    settings = {k: v for k, v in run["model"].items() if k != "tables"}
    return _load(json.dumps({**settings, "attention": run["attention"]}))


@lru_cache(maxsize=1)
def _load(settings: str) -> LoadedModel:
    return load(**json.loads(settings))


def eviction(run: Run, loaded: LoadedModel) -> Eviction | None:
    """The method at its budget; None keeps everything."""
    if not run.evicts:
        return None
    scorer, allocator, protection = (create(run[k]) for k in ("scorer", "allocator", "protection"))
    if hasattr(allocator, "check"):  # made for one model and one scorer: a budget table
        allocator.check(loaded, scorer, protection)
    return Eviction(scorer, allocator, protection, Budget(run["budget"], run["budget_tokens"]))


def benchmark(run: Run) -> Benchmark:
    return create(run["benchmark"])


def create(settings: Mapping[str, Any]) -> Any:
    """The object that `_target_` names, or a line about the argument it does not take."""
    from hydra.errors import InstantiationException

    try:
        return instantiate(dict(settings), _convert_="all")
    except InstantiationException as e:
        cause = e.__cause__ or e
        raise InputError(f"{settings.get('_target_')}: {cause}") from e
