"""From settings to objects: the model, the method, the benchmark. What cannot be built is an InputError."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from evals.run.settings import CONF, InputError, Run, create, without_tables
from lukv.allocation import Budget
from lukv.backend.rope_check import check_rotation
from lukv.eviction import Eviction
from lukv.model import LoadedModel, load


@contextmanager
def input_errors(run: Run) -> Iterator[None]:
    """Faults met while building are the input's; the same faults later on are the run's."""
    try:
        yield
    except (ValueError, OSError, ImportError, TypeError) as e:
        raise InputError(as_asked(str(e), run)) from e


def as_asked(message: str, run: Run) -> str:
    """A command that a message gives, with the model as this run names it: lukv/ knows its name only."""
    option = run["model"]["name"] if (CONF / "model" / f"{run['model']['name']}.yaml").is_file() else "hf"
    model = shlex.join([f"model={option}", *(n for n in run.nested if n.startswith("model."))])
    return re.sub(r"(?<=run\.py job=calibrate )model=\S+", lambda _: model, message)


def model(run: Run) -> LoadedModel:
    return load_model(model_settings(run))


def model_settings(run: Run) -> str:
    """What decides which model is loaded, as JSON."""
    return json.dumps({**without_tables(run["model"]), "attention": run["attention"]})


@lru_cache(maxsize=1)
def load_model(settings: str) -> LoadedModel:
    """Loaded once for all runs of a sweep that name the same model."""
    options = json.loads(settings)
    if Path(str(options["path"])).exists():  # nothing to download: bars of milliseconds only hide what is said
        disable_progress_bar()
    return load(**options)


def method(run: Run) -> tuple[Any, Any, Any] | None:
    """Scorer, allocator, protection; None keeps everything. Made before a model is loaded as well as after it: a table
    that is missing is said at once."""
    return tuple(create(run[k]) for k in ("scorer", "allocator", "protection")) if run.evicts else None


def tracker(run: Run) -> None:
    """Whether what follows the run can be made, said before a model is loaded."""
    if run["track"]:
        create(run["track"])


def eviction(run: Run, loaded: LoadedModel) -> Eviction | None:
    """The method at its budget, checked for the model; None keeps everything."""
    made = method(run)
    if made is None:
        return None
    scorer, allocator, protection = made
    check_rotation(loaded.model, [scorer])
    if hasattr(scorer, "check"):  # fitted for one model
        scorer.check(loaded)
    if hasattr(allocator, "check"):  # made for one model and one scorer: a budget table
        allocator.check(loaded, scorer, protection)
    return Eviction(scorer, allocator, protection, Budget(run["budget"], run["budget_tokens"]))
