"""The name of a run's folder: what decides its result, readable, and nothing else.

model__method__budget__benchmark__seed, then whatever departs from the chosen options. Behind the budget stands what is
evicted while answering, if anything is.
identity.py says which folder is whose.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from evals.run.instantiate import InputError, create, locate
from lukv.conf import GROUPS, read_method_defaults, read_option
from lukv.names import clean_text

LONGEST_NAME = 200
"""Bytes of a folder's name. File systems take 255."""


class Described(Protocol):
    """What names are made of; evals.run.settings.Run is one."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def parts(self) -> Mapping[str, str | None]: ...

    @property
    def evicts(self) -> bool: ...

    @property
    def departures(self) -> Mapping[str, Any]: ...

    @property
    def inputs(self) -> Mapping[str, str]: ...


TOLD = {"model.name", "job.data.name"}
"""Nested settings that other parts of a name already tell."""


TOLD_BY_DATA = ("benchmark.length", "benchmark.items", "benchmark.protocol")
"""Settings that benchmarks end their own names with."""


def make_name(run: Described) -> str:
    method = [*name_method(run), *name_cache(run.config), *name_decoding(run.config)]
    return join_name([run.config["model"]["name"], *method, *name_setting(run)])


def name_cache(config: Mapping[str, Any]) -> list[str]:
    """What the cache is stored in, where it is not the model's dtype."""
    return [] if config.get("cache_dtype") in (None, "auto") else [config["cache_dtype"]]


def join_name(parts: Sequence[str]) -> str:
    """A folder's name from parts of any origin: without a slash or a leading dot, and never too long."""
    return cut_name("__".join(map(make_slug, parts)), LONGEST_NAME)


def cut_name(name: str, longest: int) -> str:
    """The name, or its beginning with a hash of the whole where it is longer than that."""
    return name if len(name) <= longest else f"{name[: longest - 9]}-{hash_text(name)}"


def name_method(run: Described) -> list[str]:
    """The method with whatever it does not choose by itself; its budget."""
    if not run.evicts:
        return [run.config["method"] or "none"]
    chosen = {group: choice for group, choice in run.parts.items() if run.config[group] is not None}
    names = [label_method(run.config["method"], chosen), name_inner(run)]
    parts = ["-".join(name for name in names if name is not None)]
    if run.config["budget"] is not None:
        parts.append(f"b{show_value(run.config['budget'])}")
    elif run.config["budget_tokens"] is not None:
        parts.append(f"t{run.config['budget_tokens']}")
    elif run.config["budget_bytes"] is not None:
        parts.append(f"bytes{show_value(run.config['budget_bytes'])}")
    return parts


SIZES = {"tokens": "size", "share": "share"}


def name_decoding(config: Mapping[str, Any]) -> list[str]:
    """What is evicted while answering, as in ["size1024-every64"], or after each turn ("everyturn"). Empty where
    nothing is."""
    decoding = config.get("decoding")
    if decoding is None:
        return []
    sizes = [f"{name}{show_value(decoding[key])}" for key, name in SIZES.items() if decoding.get(key) is not None]
    return ["-".join([*sizes, f"every{decoding['every']}"])]


def find_method(method: str, chosen: Mapping[str, str | None]) -> str:
    """What a run is called, whatever method= it started from: by the method whose own scorer and allocator it has. No
    method has just these two: by its scorer under the allocator that most methods have (equal budgets), which tells
    nothing, else by the method it started from. chosen: the option in each of the groups scorer and allocator."""
    usual = {name: read_method_defaults(name) for name in (method, *GROUPS["method"])}
    for name, own in usual.items():
        if (own.get("scorer"), own.get("allocator")) == (chosen["scorer"], chosen["allocator"]):
            return name
    [(common, _)] = Counter(own.get("allocator") for own in usual.values()).most_common(1)
    return str(chosen["scorer"]) if chosen["allocator"] == common else method


def label_method(method: str | None, chosen: Mapping[str, str | None]) -> str:
    """The method's name and each of its parts that it does not choose by itself: "lukv", "lukv-snapkv". Without one, as
    in job=calibrate, the scorer. chosen: the option in each of the groups scorer, allocator and protection."""
    if method is None:
        return str(chosen["scorer"])
    usual = read_method_defaults(method)
    others = [choice for group, choice in chosen.items() if choice not in (None, usual.get(group), method)]
    return "-".join([method, *map(str, others)])


def name_inner(run: Described) -> str | None:
    """The scorer inside a scorer, where it is not the one that this scorer's file names."""
    inner = run.config["scorer"].get("inner") or {}
    usual = read_option("scorer", str(run.parts["scorer"])).get("inner") or {}
    return None if inner.get("name") == usual.get("name") else str(inner.get("name"))


def name_setting(run: Described, groups: Sequence[str] = ()) -> list[str]:
    """What the method is tried on, and the nested settings of these groups (of all groups without any) that are not
    the chosen options' own."""
    parts = [name_data(run.config)]
    if run.config["limit"] is not None:
        parts.append(f"n{run.config['limit']}")
    parts.append(f"s{run.config['seed']}")
    if run.config["attention"] != "auto":
        parts.append(run.config["attention"])
    return parts + list_departures(run, groups)


def list_departures(run: Described, groups: Sequence[str] = ()) -> list[str]:
    """KEY=VALUE for each nested setting that is not what the chosen option says. A file or folder stands with the first
    eight digits of its content, wherever it lies."""
    told = name_data(run.config)
    parts = []
    for key, value in run.departures.items():
        group = key.partition(".")[0]
        by_name = key in TOLD or group == "decoding" or (key.endswith(TOLD_BY_DATA) and told.endswith(f"-{value}"))
        if by_name or (groups and group not in groups):
            continue
        shown = run.inputs[key][:8] if key in run.inputs else show_value(value)
        parts.append(f"{key.replace('job.data.', 'calibration.', 1)}={shown}")
    return sorted(parts)


def show_value(value: Any) -> str:
    """A setting's value as it is typed. Numbers have all the digits that tell them apart."""
    if isinstance(value, list):
        return ",".join(map(show_value, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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
    """The text as a part of a folder's name: only safe characters, and short. What that loses goes into a hash, so that
    different texts have different slugs."""
    clean = clean_text(text)
    return clean if clean == text and len(text) <= 60 else f"{clean[:50]}-{hash_text(text)}"


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
