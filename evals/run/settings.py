"""The settings of a run: their types, what makes them valid, and which of them make it the run that it is.

`run.py --help` imports this module, so nothing heavier than Hydra is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from evals.run.fingerprint import find_path, fingerprint, fingerprint_inputs
from evals.run.identity import INNER, NESTED, drop_ignored, find_folder, hash_identity, select_identity, select_usual
from evals.run.instantiate import InputError, check_targets
from evals.run.old_names import translate_config
from evals.run.run_id import (
    find_job,
    find_method,
    join_name,
    list_departures,
    make_name,
    name_cache,
    name_decoding,
    name_method,
    name_setting,
    show_value,
)
from lukv.conf import GROUPS, find_shipped, name_model, read_method_defaults, read_option
from lukv.names import BUDGETS, check_cache_dtype

TURN = "turn"
"""decoding.every of a run that evicts after every turn of a conversation."""

METHOD_PARTS = ("scorer", "allocator", "protection")
CHOSEN = (*METHOD_PARTS, "decoding", "model", "benchmark", "calibration", "job")
"""The groups whose options make a run's settings."""


@dataclass
class Config:
    """The top level of conf/config.yaml. The groups are open: the class that a group names decides what it holds."""

    method: str = MISSING
    model: Any = MISSING
    scorer: Any = None
    allocator: Any = None
    protection: Any = None
    decoding: Any = None
    benchmark: Any = None
    calibration: Any = None
    job: Any = MISSING
    track: Any = None
    budget: Optional[float] = None  # noqa: UP045 - OmegaConf reads the annotation
    budget_tokens: Optional[int] = None  # noqa: UP045
    budget_bytes: Optional[float] = None  # noqa: UP045
    cache_dtype: str = "auto"
    seed: int = 0
    limit: Optional[int] = None  # noqa: UP045
    attention: str = "auto"
    batch_size: int = 8
    share_prefill: bool = True
    record_kept: int = 0
    reference: Optional[str] = None  # noqa: UP045
    runs: str = "runs"
    targets: list[str] = field(default_factory=list)
    verbose: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Run:
    """One run's settings, resolved to plain values.

    choices: the option chosen in each group of CHOSEN. nested: the overrides of single values inside a group
    ("scorer.window=16"), as typed.
    """

    config: Mapping[str, Any]
    choices: Mapping[str, str | None]
    nested: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.config[key]

    @property
    def evicts(self) -> bool:
        return self.config["scorer"] is not None

    @property
    def parts(self) -> dict[str, str | None]:
        """The options chosen for the method's parts. None of each where nothing is evicted."""
        return {group: self.choices.get(group) for group in METHOD_PARTS}

    @cached_property
    def id(self) -> str:
        """The name of its folder, from the name that its settings give and the folders that are there."""
        return find_folder(self, make_name(self))

    @property
    def folder(self) -> Path:
        return Path(self.config["runs"]) / self.id

    @cached_property
    def comparison_id(self) -> str:
        """What this run has in common with those of other methods and budgets. They may stand in one table."""
        return join_name([self["model"]["name"], *name_setting(self, ("model", "benchmark"))])

    @property
    def label(self) -> str:
        """What tells it from the other methods of a table: the method, and each setting that is not its own choice."""
        own = list_departures(self, [group for group in NESTED if group not in ("model", "benchmark")])
        return " ".join([name_method(self)[0], *name_cache(self.config), *name_decoding(self.config), *own])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Dotted setting -> value: what can change the result."""
        return select_identity(self.config)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Dotted setting -> fingerprint of the file or folder that it names."""
        return fingerprint_inputs({key: value for key, value in self.identity.items() if value is not None})

    @property
    def hash(self) -> str:
        return hash_identity(self.identity, self.inputs)

    @cached_property
    def usual(self) -> dict[str, Any]:
        """The identity that the chosen options have by themselves."""
        return select_usual(self.config, self.choices)

    @cached_property
    def departures(self) -> dict[str, Any]:
        """Nested settings whose value is not the chosen option's own. Of an option that is no file in conf/, those that
        were typed. The same content at another path is the same."""
        typed = {text.split("=")[0] for text in self.nested}
        out = {}
        for key in sorted({*self.identity, *self.usual}):
            group, _, nested = key.partition(".")
            value, usual = self.identity.get(key), self.usual.get(key)
            known = read_option(group, str(self.choices.get(group)))
            if not nested or value == usual or self.config[group] is None or not (known or key in typed):
                continue
            path = find_path(key, usual)
            if path is None or key not in self.inputs or fingerprint(path, group == "model") != self.inputs[key]:
                out[key] = value
        return out

    def look_again(self) -> None:
        """Read anew which files there are, where some were lacking: an earlier run of the sweep may have made them."""
        tables = (key for key in self.identity if key in ("scorer.path", "allocator.path"))
        if any(key not in self.inputs for key in tables):
            for name in ("inputs", "departures", "id", "comparison_id"):
                self.__dict__.pop(name, None)

    def make_reference(self) -> Run | None:
        """The run that this one is compared with. It differs in the method only, which keeps everything as it is."""
        if self.config["reference"] is None or not (self.evicts or name_cache(self.config)):
            return None
        nothing = {**dict.fromkeys(("scorer", "allocator", "decoding", *BUDGETS)), "cache_dtype": "auto"}
        job = {"_target_": self.config["job"]["_target_"]}  # its other settings are about the method
        config = {**self.config, **nothing, "method": self.config["reference"], "protection": None, "job": job}
        choices = {**self.choices, **dict.fromkeys((*METHOD_PARTS, "decoding"))}
        return Run(config, choices, tuple(n for n in self.nested if n.split(".")[0] in ("model", "benchmark")))


def drop_tables(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own settings. Where its budget tables lie is the method's business."""
    return {key: value for key, value in model.items() if key != "tables"}


def resolve_run(cfg: DictConfig, hydra: Any = None) -> Run:
    """Resolve and check a composed config. hydra: its hydra node; by default the running job's."""
    hydra = HydraConfig.get() if hydra is None else hydra
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(f"{key} is not set: add {key}=VALUE")
    known = {f.name for f in fields(Config)}
    for key in sorted({str(k) for k in cfg} ^ known):
        raise InputError(
            f"no setting named '{key}'" if key not in known else f"the setting '{key}' cannot be taken away"
        )
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    config = translate_config(plain)
    overrides = [o.lstrip("+") for o in hydra.overrides.task]
    config["decoding"] = config["decoding"] or None  # the file of decoding=none is empty
    try:
        check_cache_dtype(config["cache_dtype"])
    except ValueError as error:
        raise InputError(str(error)) from None
    check_budget(config, overrides)
    check_reference(config["reference"])
    for group in ("scorer", "allocator", "protection", "benchmark", "job"):
        if config[group] is not None and "_target_" not in config[group]:
            raise InputError(f"{group} has no _target_: it names the class, as the files in conf/{group}/ do")
    check_targets(config, config["targets"])
    if config["record_kept"] < 0:
        raise InputError(f"record_kept={config['record_kept']} must be at least 0")
    for key in ("limit", "batch_size"):
        if config[key] is not None and config[key] < 1:
            raise InputError(f"{key}={config[key]} must be at least 1")
    if config["scorer"] is None:  # nothing is evicted: neither budget nor protection changes anything
        config.update(dict.fromkeys(("allocator", "protection", *BUDGETS)))
        if name_cache(config):  # it is a method like others, not the full cache that they stand beside
            config["budget"] = 1.0
    check_decoding(config, str(hydra.runtime.choices.get("decoding")))
    ignored = find_job(config).ignores
    config = drop_ignored(config, ignored)
    for group in ("allocator", "protection") if config["scorer"] is not None else ():
        if config[group] is None and group not in ignored:
            raise InputError(f"method={config['method']} has no {group} to go with its scorer: add {group}=NAME")
    choices = {group: hydra.runtime.choices.get(group) for group in CHOSEN}
    choices[INNER] = hydra.runtime.choices.get(INNER)
    if config["scorer"] is None:
        choices.update(dict.fromkeys(METHOD_PARTS))
    if config["decoding"] is None:
        choices["decoding"] = None
    if config["method"] is not None and config["scorer"] is not None:
        config["method"] = find_method(config["method"], choices)
    nested = tuple(sorted(o for o in overrides if "." in o.split("=")[0] and not o.startswith("hydra")))
    run = Run(config, choices, nested)
    check_model_path(run)
    return run


def check_model_path(run: Run) -> None:
    """Raise InputError where another checkpoint would run under the name of one that lies here."""
    path = run.departures.get("model.path")
    if path is not None and find_path("model.path", run.usual.get("model.path")) is not None:
        raise InputError(
            f"model.path={path} is another checkpoint than model={run.choices['model']}: run it by model=hf:{path}"
        )


def check_budget(config: dict[str, Any], overrides: list[str]) -> None:
    """Leave exactly one budget in `config`: budget_tokens or budget_bytes if it is given, else budget."""
    share = config["budget"]
    others = {key: config[key] for key in BUDGETS[1:] if config[key] is not None}
    typed = {"budget": share} if share is not None and any(o.startswith("budget=") for o in overrides) else {}
    if len(given := {**typed, **others}) > 1 and others:
        said = " and ".join(f"{key}={value:g}" for key, value in given.items())
        raise InputError(f"{'both ' if len(given) == 2 else ''}{said} are given: give one of them")
    tokens, in_bytes = config["budget_tokens"], config["budget_bytes"]
    if others:
        config["budget"] = None
    if tokens is not None and tokens < 1:
        raise InputError(f"budget_tokens={tokens} must be at least 1")
    if in_bytes is not None and not (math.isfinite(in_bytes) and 0 < in_bytes <= 1):
        raise InputError(
            f"budget_bytes={in_bytes:g} is not a share: it must be > 0 and <= 1 (of the full cache's bytes, to KEEP)"
        )
    if others:
        return
    if share is None:
        raise InputError(
            "no budget: give budget=SHARE (0 < share <= 1, the part of the cache to KEEP), budget_tokens=N or "
            "budget_bytes=SHARE"
        )
    if not (math.isfinite(share) and 0 < share <= 1):
        raise InputError(f"budget={share:g} is not a share: it must be > 0 and <= 1 (the part of the cache to KEEP)")


def check_decoding(config: Mapping[str, Any], option: str) -> None:
    """Raise InputError unless `decoding` can be asked for, as far as its own settings tell (build.check_later looks at
    what is to evict). option: the file in conf/decoding that was chosen."""
    decoding = config["decoding"]
    if decoding is None:
        return
    if config["scorer"] is None:
        raise InputError(
            f"method={config['method']} evicts nothing, also while answering: decoding={option} needs a method with a "
            "scorer. method=NAME budget=1 leaves the prompt whole"
        )
    if unknown := sorted(decoding.keys() - {"tokens", "share", "every"}):
        raise InputError(f"decoding has no {', '.join(unknown)}: it has every and one of tokens and share")
    tokens, share, every = (decoding.get(key) for key in ("tokens", "share", "every"))
    if (tokens is None) == (share is None) and not (every == TURN and tokens is None):
        raise InputError("decoding needs one of tokens and share: decoding=size decoding.tokens=N, or decoding=share")
    if every != TURN and (type(every) is not int or every < 1):
        raise InputError(
            f"decoding.every={show_value(every)} must be at least 1, or {TURN}: after each of a conversation"
        )
    if tokens is not None and tokens < 1:
        raise InputError(f"decoding.tokens={tokens} must be at least 1")
    if share is not None and not (math.isfinite(share) and 0 < share <= 1):
        raise InputError(f"decoding.share={share:g} is not a share: it must be > 0 and <= 1 (the part to KEEP)")


def check_reference(name: str | None) -> None:
    """The run that stands beside every other keeps everything: another method would get the full cache's scores."""
    keep_all = [method for method in GROUPS["method"] if read_method_defaults(method).get("scorer") is None]
    if name is not None and name not in keep_all:
        raise InputError(
            f"reference={name} is no method that keeps the whole cache: choose {' or '.join(keep_all)}, or null (none)"
        )


def resolve_run_id(*, _root_: DictConfig) -> str:
    return resolve_run(drop_hydra(_root_), _root_.get("hydra")).id


def drop_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("run_id", resolve_run_id, replace=True)
OmegaConf.register_new_resolver("model_name", name_model, replace=True)
OmegaConf.register_new_resolver("shipped", find_shipped, replace=True)
