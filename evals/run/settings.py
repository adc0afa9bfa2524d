"""The settings of a run: their types, what makes them valid, and which of them make it the run that it is.

`run.py --help` imports this module, so nothing heavier than Hydra is imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from evals.run.conf import GROUPS, ROOT, read_method_defaults
from evals.run.instantiate import InputError, check_targets
from evals.run.old_names import translate_config
from evals.run.run_id import find_job, join_name, make_run_id, make_slug, name_setting

RESULT_KEYS = (
    *("method", "model", "scorer", "allocator", "protection", "benchmark"),
    *("budget", "budget_tokens", "seed", "limit", "attention", "job"),
)
"""Settings that can change a result. The others (batch_size, track, runs ...) only change how it is reached."""


@dataclass
class Config:
    """The top level of conf/config.yaml. The groups are open: the class that a group names decides what it holds."""

    method: str = MISSING
    model: Any = MISSING
    scorer: Any = None
    allocator: Any = None
    protection: Any = None
    benchmark: Any = None
    calibration: Any = None
    job: Any = MISSING
    track: Any = None
    budget: Optional[float] = None  # noqa: UP045 - OmegaConf reads the annotation
    budget_tokens: Optional[int] = None  # noqa: UP045
    seed: int = 0
    limit: Optional[int] = None  # noqa: UP045
    attention: str = "auto"
    batch_size: int = 8
    share_prefill: bool = True
    reference: Optional[str] = None  # noqa: UP045
    runs: str = "runs"
    targets: list[str] = field(default_factory=list)
    debug: bool = False


@dataclass(frozen=True)
class Run:
    """One run's settings, resolved to plain values.

    choices: the options chosen in the groups. nested: the overrides of single values inside a group
    ("scorer.window=16").
    """

    config: Mapping[str, Any]
    choices: Mapping[str, str | None]
    nested: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.config[key]

    @property
    def evicts(self) -> bool:
        return self.config["scorer"] is not None

    @cached_property  # the benchmark is made to learn its name
    def id(self) -> str:
        return make_run_id(self)

    @property
    def folder(self) -> Path:
        return Path(self.config["runs"]) / self.id

    @cached_property
    def comparison_id(self) -> str:
        """What this run has in common with those of other methods and budgets. They may stand in one table."""
        data = Run(self.config, self.choices, select_data_settings(self.nested))
        return join_name([self["model"]["name"], *name_setting(data)])

    @property
    def identity(self) -> dict[str, Any]:
        return select_identity(self.config)

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def make_reference(self) -> Run | None:
        """The run that this one is compared with. It differs in the method only, which keeps everything."""
        if not self.evicts or self.config["reference"] is None:
            return None
        nothing = dict.fromkeys(("scorer", "allocator", "budget", "budget_tokens"))
        job = {"_target_": self.config["job"]["_target_"]}  # its other settings are about the method
        config = {**self.config, **nothing, "method": self.config["reference"], "protection": None, "job": job}
        return Run(config, dict.fromkeys(self.choices), select_data_settings(self.nested))


def select_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change the result. The tables' folder is not among them: the allocator's path is. Whether
    the model was checked is not either."""
    model = {key: value for key, value in drop_tables(config.get("model") or {}).items() if key != "check"}
    return {**{key: config.get(key) for key in RESULT_KEYS}, "model": model}


def drop_tables(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own settings. Where its budget tables lie is the method's business."""
    return {key: value for key, value in model.items() if key != "tables"}


def select_data_settings(nested: tuple[str, ...]) -> tuple[str, ...]:
    """The nested settings that are about the model and the benchmark, and so not the method's. Tables are its."""
    return tuple(n for n in nested if n.split(".")[0] in ("model", "benchmark") and not n.startswith("model.tables="))


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
    check_budget(config, overrides)
    check_reference(config["reference"])
    for group in ("scorer", "allocator", "protection", "benchmark", "job"):
        if config[group] is not None and "_target_" not in config[group]:
            raise InputError(f"{group} has no _target_: it names the class, as the files in conf/{group}/ do")
    check_targets(config, config["targets"])
    for key in ("limit", "batch_size"):
        if config[key] is not None and config[key] < 1:
            raise InputError(f"{key}={config[key]} must be at least 1")
    if config["scorer"] is None:  # nothing is evicted: neither budget nor protection changes anything
        config.update(dict.fromkeys(("allocator", "protection", "budget", "budget_tokens")))
    ignored = find_job(config).ignores
    for key in ignored:
        group, _, rest = key.partition(".")
        if rest:
            config[group] = {k: v for k, v in (config[group] or {}).items() if k != rest} or None
        else:
            config[key] = None
    for group in ("allocator", "protection") if config["scorer"] is not None else ():
        if config[group] is None and group not in ignored:
            raise InputError(f"method={config['method']} has no {group} to go with its scorer: add {group}=NAME")
    choices = {
        g: hydra.runtime.choices.get(g) if config["scorer"] else None for g in ("scorer", "allocator", "protection")
    }
    nested = tuple(sorted(o for o in overrides if "." in o.split("=")[0] and not o.startswith("hydra")))
    return Run(config, choices, nested)


def check_budget(config: dict[str, Any], overrides: list[str]) -> None:
    """Leave exactly one budget in `config`: budget_tokens if it is given, else budget."""
    share, tokens = config["budget"], config["budget_tokens"]
    if tokens is not None:
        if share is not None and any(o.startswith("budget=") for o in overrides):
            raise InputError(f"both budget={share:g} and budget_tokens={tokens} are given: give one of them")
        if tokens < 1:
            raise InputError(f"budget_tokens={tokens} must be at least 1")
        config["budget"] = None
    elif share is None:
        raise InputError(
            "no budget: give budget=SHARE (0 < share <= 1, the part of the cache to KEEP) or budget_tokens=N"
        )
    elif not (math.isfinite(share) and 0 < share <= 1):
        raise InputError(f"budget={share:g} is not a share: it must be > 0 and <= 1 (the part of the cache to KEEP)")


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


def name_model(path: Any) -> str:
    return make_slug(Path(str(path)).name.lower())


def find_shipped(path: str) -> str:
    """A folder that comes with this program: as it is named if the current folder has it, else its full path."""
    return path if Path(path).exists() else str(ROOT / path)


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("run_id", resolve_run_id, replace=True)
OmegaConf.register_new_resolver("model_name", name_model, replace=True)
OmegaConf.register_new_resolver("shipped", find_shipped, replace=True)
