"""The name of a run's folder: what decides its result, readable, and nothing else.

model__method-scorer__budget__benchmark__seed, then whatever departs from the method's own choices or the defaults
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.run.conf import read_method_defaults
from evals.run.instantiate import InputError, create, locate
from evals.run.old_names import restore_in_run_id

if TYPE_CHECKING:
    from evals.run.settings import Run

LONGEST_NAME = 200
"""Bytes of a folder's name. File systems take 255."""

NAMED_ELSEWHERE = (
    *("model.path", "model.name", "model.device", "model.device_map", "model.check"),
    *("benchmark.length", "job.save"),
)
"""Nested settings that the model's and the benchmark's names already tell, or that change no result."""


def make_run_id(run: Run) -> str:
    return join_name([run["model"]["name"], *name_method(run), *name_setting(run)])


def join_name(parts: Sequence[str]) -> str:
    """A folder's name from parts of any origin: without a slash or a leading dot, and never too long."""
    name = "__".join(map(make_slug, parts))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{hash_text(name)}"


def name_method(run: Run) -> list[str]:
    """The method with its scorer and whatever it does not choose by itself; its budget."""
    if not run.evicts:
        return [run["method"] or "none"]
    usual = read_method_defaults(run["method"]) if run["method"] else run.choices
    extra = [c for g, c in run.choices.items() if g != "scorer" and run[g] is not None and c != usual.get(g)]
    parts = ["-".join(str(c) for c in [run["method"], run.choices["scorer"], *extra] if c is not None)]
    if run["budget"] is not None:
        parts.append(f"b{run['budget']:g}")
    elif run["budget_tokens"] is not None:
        parts.append(f"t{run['budget_tokens']}")
    return parts


def name_setting(run: Run) -> list[str]:
    """What the method is tried on, and the nested settings."""
    parts = [name_data(run.config)]
    if run["limit"] is not None:
        parts.append(f"n{run['limit']}")
    parts.append(f"s{run['seed']}")
    if run["attention"] != "auto":
        parts.append(run["attention"])
    unsaid = NAMED_ELSEWHERE if reads_tables(run) else (*NAMED_ELSEWHERE, "model.tables")
    return parts + sorted(restore_in_run_id(n) for n in run.nested if n.split("=")[0] not in unsaid)


def reads_tables(run: Run) -> bool:
    """Whether the scorer or the allocator reads a file from model.tables."""
    folder = Path(str(run["model"].get("tables")))
    files = [run[group].get("path") for group in ("scorer", "allocator") if run[group]]
    return any(folder in Path(file).parents for file in files if file)


def name_data(config: Mapping[str, Any]) -> str:
    """What the job works on: what it says itself, as in "calibrate-ruler-1024", or else the benchmark's name."""
    return find_job(config).name_data(config) or name_benchmark(config["benchmark"])


def find_job(config: Mapping[str, Any]) -> Any:
    """The class that job= names. This is the one place where evals/run/ imports evals/jobs/, and it does so late."""
    target = config["job"]["_target_"]
    job = locate(target)
    if not hasattr(job, "name_data"):
        raise InputError(f"job._target_={target} is no job: derive it from evals.jobs.job.Job")
    return job


def name_benchmark(settings: Mapping[str, Any]) -> str:
    """What the benchmark calls itself. It is made for that, so its settings are checked too."""
    return _name_benchmark(json.dumps(settings))


@lru_cache
def _name_benchmark(settings: str) -> str:
    """The many runs of a sweep are about one benchmark, which is made once."""
    return str(create(json.loads(settings)).name)


def make_slug(text: str) -> str:
    """The text as a part of a folder's name: only safe characters, and short. What is cut off goes into a hash."""
    clean = (
        re.sub(r"__+", "_", re.sub(r"[^\w.+=,-]+", "-", re.sub(r"[\[\]{}'\" ]", "", text), flags=re.ASCII)).strip(".-_")
        or "x"
    )
    return clean if len(clean) <= 60 else f"{clean[:50]}-{hash_text(text)}"


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
