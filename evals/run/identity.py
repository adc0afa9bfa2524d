"""Which experiment a run is: the settings that decide its result, and the contents of the files that they name.

Two different experiments never share a folder, and one experiment never has two. Names are short and for people
(run_id.py). What is compared is the whole identity, as config.yaml and run.json record it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from glob import escape
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from evals.run.conf import list_leaves
from evals.run.files import read_json, read_settings
from evals.run.fingerprint import find_path, matches_old_record, names_path
from evals.run.instantiate import locate
from evals.run.run_id import find_job, hash_text
from lukv.conf import read_option

INNER = "scorer@scorer.inner"
"""The group, as Hydra names it, of the scorer inside a scorer (lukv.scoring.Wrapper)."""

NESTED = ("model", "scorer", "allocator", "protection", "decoding", "benchmark", "job")

RESULT_KEYS = (*NESTED, "budget", "budget_tokens", "budget_bytes", "cache_dtype", "seed", "limit", "attention")
"""Settings that can change a result. The others (batch_size, track, runs ...) only change how it is reached, and what a
method is called changes nothing: its parts are here."""

UNTOLD = {
    *("model.device", "model.device_map", "model.prefill_chunk", "model.tables", "model.made_by", "model.check"),
    *("job.save", "job.overwrite"),
}
"""Settings inside these groups that change no result. The tables' folder is one: the allocator's path says which."""


class Identified(Protocol):
    """What tells a run; evals.run.settings.Run is one."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def parts(self) -> Mapping[str, str | None]: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def usual(self) -> Mapping[str, Any]: ...

    @property
    def inputs(self) -> Mapping[str, str]: ...

    @property
    def hash(self) -> str: ...


def select_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted setting -> value, of those that can change the result. config: as in config.yaml."""
    told = drop_ignored({key: config.get(key) for key in RESULT_KEYS}, find_job(config).ignores)
    if told["cache_dtype"] == "auto":  # what folders from before there was a choice do not say
        told["cache_dtype"] = None
    return {key: unwrap(value) for key, value in list_leaves(told) if key not in UNTOLD}


def drop_ignored(config: Mapping[str, Any], ignored: tuple[str, ...]) -> dict[str, Any]:
    """The settings without those that make no difference to the job, such as "budget" or "scorer.path"."""
    out = dict(config)
    for key in ignored:
        group, _, rest = key.partition(".")
        if rest:
            out[group] = {k: v for k, v in (out.get(group) or {}).items() if k != rest} or None
        else:
            out[key] = None
    return out


def unwrap(value: Any) -> Any:
    """benchmark.tasks=vt is benchmark.tasks=[vt], and both lead to one folder."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def select_usual(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> dict[str, Any]:
    """What the run's identity would be if the chosen options were left as their files in conf/ have them.

    The model keeps its name, which stands in run ids by itself. A setting that has no default is left out.
    """
    filled: dict[str, Any] = {"seed": config["seed"]}
    lacking = []
    for group in (*NESTED, "calibration"):
        option = read_option(group, str(choices.get(group))) if config.get(group) is not None else {}
        if group == "scorer" and choices.get(INNER):
            option = {**option, "inner": read_option("scorer", str(choices[INNER]))}
        lacking += [key for key, value in list_leaves(option, group) if value == "???"]
        filled[group] = fill(option, config[group]) if option else config.get(group)
    filled["model"] = {**filled["model"], "name": config["model"]["name"]}
    plain: Any = OmegaConf.to_container(OmegaConf.create(filled), resolve=True)
    usual = select_identity({**config, **plain})
    lacking += [key.replace("calibration.", "job.data.", 1) for key in lacking]
    return {key: value for key, value in usual.items() if key not in lacking}


def fill(option: Any, actual: Any) -> Any:
    """An option's settings, and the actual value of those that it leaves open."""
    if isinstance(option, Mapping):
        own = actual if isinstance(actual, Mapping) else {}
        return {key: fill(value, own.get(key)) for key, value in option.items()}
    return actual if option == "???" else option


def hash_identity(identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Sixteen digits of everything that can change the result."""
    told = {key: inputs.get(key, value) for key, value in identity.items() if value is not None}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def list_changes(was: Mapping[str, Any], record: Mapping[str, Any], run: Identified) -> list[str]:
    """In which settings and input files a run differs from the one that a folder records: ["budget: 0.2 -> 0.3", ...].

    was, record: the folder's config.yaml and run.json. A file is compared by content, whatever its path was. A setting
    that config.yaml does not have yet was what is the default now, unless nothing was chosen in its group.
    """
    old, new, contents = select_identity(was), run.identity, record.get("inputs", {})
    by_path = not contents or not set(contents) <= set(old)  # as older versions did
    changes = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if key in run.inputs:
            path = find_path(key, now)
            if by_path and path is not None:
                same = matches_old_record(path, str(before), str(now), record, key)
            else:
                same = contents.get(key) == run.inputs[key]
            if not same:
                changes.append(f"content of {key}")
        elif before != now and not (not {key, key.partition(".")[0]} & old.keys() and run.usual.get(key) == now):
            changes.append(f"{key}: {before} -> {now}")
    return changes


def find_folder(run: Identified, name: str) -> str:
    """The name of the run's folder in `runs`: `name`, unless the experiment has another folder already, as one that an
    older version named, or another experiment has this one. Then the identity's hash makes the difference."""
    folder = Path(run.config["runs"])
    if is_of(folder / name, run, damaged=True):
        return name
    model, method, *rest = map(escape, name.split("__"))
    older = "__".join([model, f"*-{run.parts['scorer']}*", *rest[:2]])  # names had the scorer of every method
    for pattern in (f"{model}__{method}*", f"{older}*"):
        for other in sorted(folder.glob(f"{pattern}/config.yaml")):
            if is_of(other.parent, run):
                return other.parent.name
    return f"{name}__{run.hash[:8]}" if is_begun(folder / name) else name


def is_begun(folder: Path) -> bool:
    return (folder / "run.json").exists()


def is_of(folder: Path, run: Identified, damaged: bool = False) -> bool:
    """Whether the folder holds this very experiment. damaged: what to say of one that cannot be read."""
    if not is_begun(folder):
        return False
    try:
        was, record = (read_cached(folder / name) for name in ("config.yaml", "run.json"))
    except (ValueError, OSError):  # whoever opens this folder is told
        return damaged
    return not list_changes(was, record, run)


def read_cached(path: Path) -> Any:
    at = path.stat()
    return _read(path, at.st_ino, at.st_size, at.st_mtime_ns)


@lru_cache(maxsize=2048)
def _read(path: Path, *_: int) -> Any:
    """The many runs of a sweep look at the same folders."""
    return read_json(path) if path.suffix == ".json" else read_settings(path)


def describe_experiment(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str | None]:
    """What results in one table agree in, as hashes. config, record: a folder's config.yaml and run.json.

    asked: the settings of model and benchmark and all prompts, wherever the files lay. known: the weights and the right
    answers; None in older runs, which do not record them. data: both.
    """
    prompts = record.get("prompts")
    settings = {}
    for key, value in select_identity(config).items():
        group = key.partition(".")[0]
        by_content = prompts is not None and names_path(key, value)
        if group in ("model", "benchmark", "seed", "limit", "attention") and value is not None and not by_content:
            settings[key] = value
    usual = {f"model.{key}": value for key, value in read_option("model", "hf").items()}
    parameters = signature(locate(config["benchmark"]["_target_"])).parameters
    usual |= {f"benchmark.{key}": parameter.default for key, parameter in parameters.items()}
    settings = {key: value for key, value in settings.items() if usual.get(key) != value}  # older runs lack newer ones
    asked = hash_text(json.dumps([settings, prompts], sort_keys=True, default=str))
    known = [record[key] for key in ("weights_hash", "references") if key in record]
    content = hash_text(json.dumps(known, sort_keys=True)) if known else None
    return {"asked": asked, "known": content, "data": hash_text(f"{asked} {content}")}
