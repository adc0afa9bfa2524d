"""A method by its name: the three parts that conf/ names, made and checked for a model.

conf/ names each part's class by `_target_`, as Hydra does for the command line. So lukv/ imports no baseline itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lukv.allocation import Allocator, Budget
from lukv.backend.architecture import unwrap
from lukv.backend.geometry import measure_sizes
from lukv.backend.kernels import pick
from lukv.backend.lend import lend_attention
from lukv.backend.passes import check_shown
from lukv.backend.rope_check import check_rotation
from lukv.conf import GROUPS, name_model, read_method_defaults, read_option, resolve
from lukv.model import AnyModel, LoadedModel, NamedModel, Network
from lukv.names import check_cache_dtype, suggest_nearest
from lukv.scoring import Scorer
from lukv.selection import Eviction, Protection, keep_everything

PARTS = ("scorer", "allocator", "protection")


def method(
    name: str,
    budget: float | None = None,
    model: AnyModel | None = None,
    *,
    budget_tokens: int | None = None,
    budget_bytes: float | None = None,
    cache_dtype: str = "auto",
    scorer: str | Scorer | None = None,
    allocator: str | Allocator | None = None,
    protection: str | Protection | None = None,
    tables: str | Path | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Eviction | None:
    """The method that `python run.py method=NAME` runs. None for one that keeps everything (full) as it is.

    budget: the share to KEEP, 0 < budget <= 1; or budget_tokens: tokens each KV head keeps on average; or budget_bytes:
    the share of the full cache's bytes, which needs the model. cache_dtype: what is kept is stored in it: auto (the
    model's dtype), int8 or int4. scorer,
    allocator, protection: instead of the method's own, by name (the files in conf/) or as an object. model: what it is
    for. Its budget table is then found as the command line finds it, and checked to be made for this model. tables: the
    folder that has the table instead. seed: of what draws random numbers. settings: single values of a part, as on the
    command line: {"scorer.window": 16}, {"scorer.inner.window": 16}; {"scorer@scorer.inner": "keydiff"} puts another
    scorer inside the scorer.

    Raises ValueError for a wrong name, which it compares with the known ones, for a budget that is none and for a table
    of another model; FileNotFoundError where there is no table.
    """
    check_name("method", name)
    chosen: dict[str, Any] = {**read_method_defaults(name)}
    chosen |= {k: v for k, v in {"scorer": scorer, "allocator": allocator, "protection": protection}.items() if v}
    if chosen.get("scorer") is None:
        return keep_everything(cache_dtype)
    if budget_bytes is None:
        share = Budget(budget, budget_tokens)
    elif (budget, budget_tokens) != (None, None):
        raise ValueError("budget_bytes is given with budget or budget_tokens: give one of them")
    elif model is None:
        raise ValueError("budget_bytes depends on what the model stores: give model=MODEL, too")
    else:
        share = make_byte_budget(budget_bytes, cache_dtype, describe(model))
    known: dict[str, Any] = {"seed": seed, "model": find_tables(model, tables)}
    overrides = dict(settings or {})
    parts: dict[str, Any] = {}
    for group in PARTS:
        part = chosen.get(group)
        if part is None:
            raise ValueError(f"method={name} has no {group} to go with its scorer: give {group}=NAME")
        if isinstance(part, str):
            check_name(group, part)
            known[group] = choose_option(group, part, overrides)
            known[group] = fill_in(group, known)
            part = make_part(known[group], known["model"], tables)
        else:
            known[group] = {"name": getattr(part, "name", "")}
        parts[group] = part
    check_taken(overrides)
    eviction = Eviction(**parts, budget=share, cache_dtype=cache_dtype)
    if model is not None:
        named = describe(model)
        with lend_attention(named.model):
            check_fits(eviction, named)
    return eviction


def make_byte_budget(share: float, cache_dtype: str, model: Network) -> Budget:
    """Entries that take this share of the full cache's bytes. Raises ValueError where there are none such."""
    check_cache_dtype(cache_dtype)
    with lend_attention(model.model):
        return Budget(share, sizes=measure_sizes(model.model, cache_dtype))


def make_option(group: str, option: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The object of an option that refers to no other: a benchmark. settings: single values of it, {"GROUP.KEY": ...}.
    Raises ValueError for wrong names."""
    check_name(group, option)
    overrides = dict(settings or {})
    own = choose_option(group, option, overrides)
    check_taken(overrides)
    return make(own)


def check_taken(overrides: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that belongs to nothing given by name."""
    for key in overrides:
        raise ValueError(f"settings: {key!r} is no value of a part given by name: write PART.KEY, as in scorer.window")


def check_name(group: str, name: str) -> None:
    """Raise ValueError unless conf/ has an option of that name."""
    if name not in GROUPS[group]:
        near = suggest_nearest(name, GROUPS[group])
        raise ValueError(f"{group}={name} is not known.{near} Choose one of {', '.join(GROUPS[group])}")


def choose_option(group: str, option: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of conf/'s option, nothing resolved, with those overrides that are its own; they leave `overrides`.

    {"scorer.window": 16} is a single value; {"scorer@scorer.inner": "keydiff"} puts another option, by name or as an
    object, where one is held. Raises ValueError for a value or a place that the option does not have.
    """
    chosen: dict[str, Any] = {**read_option(group, option)}
    for key in sorted(overrides, key=lambda key: "@" not in key):  # what is held, before its values
        of, _, place = key.rpartition("@")
        first, _, inside = place.partition(".")
        if first != group or of not in ("", group):
            continue
        value, held = overrides.pop(key), list_held(chosen)
        known = held if of else list_values(chosen)
        if inside in held and not of:
            raise ValueError(f"settings: {key} is a {group} of its own: write '{group}@{key}' for its name")
        if inside not in known:
            near = suggest_nearest(inside, known, key.removesuffix(inside))
            raise ValueError(f"settings: {group}={option} has no {inside!r}.{near} It has {', '.join(known) or 'none'}")
        if of and isinstance(value, str):
            check_name(of, value)
            value = read_option(of, value)
        chosen = set_value(chosen, inside, value)
    return chosen


def list_values(settings: Mapping[str, Any]) -> list[str]:
    """The dotted keys of single values, those of held options included."""
    held = {key: settings[key] for key in list_held(settings)}
    inside = [f"{key}.{name}" for key, option in held.items() for name in list_values(option)]
    return [key for key in settings if key != "_target_" and key not in held] + inside


def list_held(settings: Mapping[str, Any]) -> list[str]:
    """The keys under which an option holds another one (the scorer inside a scorer)."""
    return [key for key, value in settings.items() if isinstance(value, Mapping) and "_target_" in value]


def set_value(settings: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another value at the dotted key."""
    first, dot, rest = key.partition(".")
    return {**settings, first: set_value(settings[first], rest, value) if dot else value}


def fill_in(group: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The group's settings with what they refer to. Raises ValueError where that is the tables of no known model."""
    if not known["model"] and any("${model.tables}" in str(value) for value in known[group].values()):
        raise ValueError(f"this {group} reads a file made for the model: give model=MODEL or tables=FOLDER")
    return resolve(group, known)


def make(settings: Mapping[str, Any]) -> Any:
    """The object that `_target_` names, and those that its values name (a scorer around another)."""
    module, _, name = str(settings["_target_"]).rpartition(".")
    given = {**settings} | {key: make(settings[key]) for key in list_held(settings)}
    given.pop("_target_")
    return getattr(import_module(module), name)(**given)


def make_part(settings: Mapping[str, Any], model: Mapping[str, Any], tables: str | Path | None) -> Any:
    """The same; a missing file's message names the model as a command line has to, and says how to name another folder.
    model: its settings in conf/."""
    try:
        return make(settings)
    except FileNotFoundError as error:
        message = str(error)
        if "path" in model:
            typed = ["model=" + (model["name"] if model["name"] in GROUPS["model"] else f"hf:{model['path']}")]
            typed += [f"model.tables={tables}"] if tables is not None else []
            message = re.sub(r"(?<=job=calibrate )model=\S+", lambda _: shlex.join(typed), message)
        raise FileNotFoundError(f"{message}, or say with tables=FOLDER where it is") from error


def find_tables(model: AnyModel | None, tables: str | Path | None) -> dict[str, Any]:
    """What conf/ calls `model`, with the folder of its tables. Empty if nothing says it."""
    found = {} if model is None else find_model_settings(describe(model).path)
    return found if tables is None else {**found, "tables": str(tables)}


def find_model_settings(path: str) -> dict[str, Any]:
    """The settings of the model in conf/model that lies at `path`; those of any other model (hf) if there is none."""
    for option in GROUPS["model"]:
        settings = resolve("model", {"model": {**read_option("model", option)}})
        if is_same_place(path, str(settings["path"])):
            return settings
    return resolve("model", {"model": {**read_option("model", "hf"), "path": path}})


def is_same_place(a: str, b: str) -> bool:
    """The same hub id, or the same folder or file on this machine."""
    return a == b or (Path(a).exists() and Path(b).exists() and Path(a).samefile(b))


def describe(model: AnyModel) -> NamedModel | LoadedModel:
    """A model with its name: as conf/model has it, or the last part of where it was loaded from."""
    if isinstance(model, LoadedModel):
        return model
    network = unwrap(model)
    path = str(getattr(network.config, "_name_or_path", ""))
    return NamedModel(network, name_model(path), path)


def check_fits(eviction: Eviction, model: Network) -> None:
    """Raise ValueError for a method that cannot run on this model: its scorer undoes another rotation or looks at what
    the model does not show, its probe or table was made for another model, or the decode kernel that was asked for
    cannot read its cache. The model's attention must be ours."""
    network, attention = model.model, getattr(model, "attention", "auto")
    if attention != "auto":
        pick(attention, network.device, network.dtype, 64, 64, cache_dtype=eviction.cache_dtype)
    check_rotation(model.model, [eviction.scorer])
    check_shown(model.model, [eviction.scorer])
    if hasattr(eviction.scorer, "check"):  # it is fitted for one model
        eviction.scorer.check(model)
    if hasattr(eviction.allocator, "check"):  # its budget table is made for one model and one scorer
        eviction.allocator.check(model, eviction.scorer, eviction.protection)
