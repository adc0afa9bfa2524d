"""The settings of a run: their types, what makes them valid, and the name of the folder they lead to.

Imported by `run.py --help`: nothing heavier than Hydra here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Where conf/ and models/ lie: the repository, or the installed package, into which setup.py copies them."""
CONF = ROOT / "conf"

RESULT_KEYS = (
    *("method", "model", "scorer", "allocator", "protection", "benchmark"),
    *("budget", "budget_tokens", "seed", "limit", "attention", "job"),
)
"""Settings that can change a result. The others (batch_size, track, runs ...) only change how it is reached."""


class InputError(ValueError):
    """What the user asked for cannot be done as asked: one line, exit code 2."""


@dataclass
class Config:
    """Top level of conf/config.yaml. The groups are open: what they hold is up to the class they name."""

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
    share: bool = True
    reference: Optional[str] = None  # noqa: UP045
    runs: str = "runs"
    targets: list[str] = field(default_factory=list)
    debug: bool = False


@dataclass(frozen=True)
class Run:
    """One run, resolved: plain values only. `choices` are the options chosen in the groups, `nested` the overrides of
    single values inside a group ("scorer.window=16")."""

    config: Mapping[str, Any]
    choices: Mapping[str, str | None]
    nested: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.config[key]

    @property
    def evicts(self) -> bool:
        return self.config["scorer"] is not None

    @cached_property  # making one makes the benchmark
    def id(self) -> str:
        return run_id(self)

    @property
    def experiment(self) -> str:
        """What runs of different methods and budgets have in common: those with the same may stand in one table."""
        reference = Run(self.config, self.choices, about_data(self.nested))
        return folder_name([self["model"]["name"], *setting_parts(reference)])

    @property
    def folder(self) -> Path:
        return Path(self.config["runs"]) / self.id

    @property
    def subject(self) -> dict[str, Any]:
        return subject(self.config)

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.subject, sort_keys=True).encode()).hexdigest()[:16]

    def reference(self) -> Run | None:
        """The run this one is compared with: the same but for the method, which keeps everything."""
        if not self.evicts or self.config["reference"] is None:
            return None
        nothing = dict.fromkeys(("scorer", "allocator", "budget", "budget_tokens"))
        job = {"_target_": self.config["job"]["_target_"]}  # its other settings are about the method
        config = {**self.config, **nothing, "method": self.config["reference"], "protection": None, "job": job}
        return Run(config, dict.fromkeys(self.choices), about_data(self.nested))


def subject(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change the result. Where budget tables lie is not among them: the allocator's path is."""
    return {**{key: config.get(key) for key in RESULT_KEYS}, "model": without_tables(config.get("model") or {})}


def without_tables(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own settings: where its tables lie is the method's affair."""
    return {key: value for key, value in model.items() if key != "tables"}


def about_data(nested: tuple[str, ...]) -> tuple[str, ...]:
    """The nested settings that are not the method's. Tables are its."""
    return tuple(n for n in nested if n.split(".")[0] in ("model", "benchmark") and not n.startswith("model.tables="))


def run_of(cfg: DictConfig, hydra: Any = None) -> Run:
    """Resolve and check a composed config; hydra: its hydra node, by default that of the running job."""
    hydra = HydraConfig.get() if hydra is None else hydra
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise InputError(f"{key} is not set: add {key}=VALUE")
    known = {f.name for f in fields(Config)}
    for key in sorted({str(k) for k in cfg} ^ known):
        raise InputError(
            f"no setting named '{key}'" if key not in known else f"the setting '{key}' cannot be taken away"
        )
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    config: dict[str, Any] = dict(plain)
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
    ignored = config["job"].pop("ignores", ())
    for key in ignored:  # settings that make no difference to this job
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
    """Exactly one budget remains in `config`: budget_tokens if it is given, else budget."""
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
    """What stands beside a run keeps everything: a name that does not would get the full cache's scores."""
    methods = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
    keep_all = [method for method in methods if method_defaults(method).get("scorer") is None]
    if name is not None and name not in keep_all:
        raise InputError(
            f"reference={name} is no method that keeps the whole cache: choose {' or '.join(keep_all)}, or null (none)"
        )


OURS = ("lukv", "baselines", "evals")


def nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The known name that is most like this one, as a question behind a space, `prefix` before it; empty if none is."""
    near = get_close_matches(name, known, 1, 0.5)
    return f" Did you mean '{prefix}{near[0]}'?" if near else ""


def located(target: str) -> Any:
    """The class or function of that name. Raises InputError unless it is defined in the package it is named by, or in
    ours: evals.x.subprocess.run is not evals'."""
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it says of an error is said below, once
    try:
        found = get_object(target)
    except Exception as e:  # whatever importing it raises
        place, _, name = target.rpartition(".")
        if place in sys.modules:
            near = nearest(name, dir(sys.modules[place]))
            raise InputError(f"_target_={target}: {place} has no {name}.{near}") from e
        raise InputError(f"_target_={target} cannot be imported: {' '.join(str(e.__cause__ or e).split())}") from e
    home = str(getattr(found, "__module__", None)).split(".")[0]
    if home not in (target.split(".")[0], *OURS) or not callable(found):
        raise InputError(f"_target_={target} is no class or function of {target.split('.')[0]}'s own (it is {home}'s)")
    return found


def targets_in(node: Any) -> Iterator[str]:
    """Every `_target_` in nested settings."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)


def check_targets(node: Any, allowed: list[str], where: str = "") -> None:
    """Whatever a config instantiates comes from an allowed package."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and str(target).split(".")[0] not in allowed:
            raise InputError(
                f"{where or 'config'}._target_={target} is not in {', '.join(allowed)}: "
                f"if you trust it, add its package: 'targets=[{','.join(allowed)},{str(target).split('.')[0]}]'"
            )
        for key, value in node.items():
            check_targets(value, allowed, f"{where}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            check_targets(value, allowed, f"{where}[{i}]")


def run_id(run: Run) -> str:
    """model__method-scorer__budget__benchmark__seed, and whatever departs from the method's or the defaults."""
    return folder_name([run["model"]["name"], *method_parts(run), *setting_parts(run)])


LONGEST_NAME = 200
"""File systems take 255 bytes."""


def folder_name(parts: Sequence[str]) -> str:
    """One folder's name, wherever the parts come from: no slash, no leading dot, never too long."""
    name = "__".join(map(slug, parts))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{digest(name)}"


def method_parts(run: Run) -> list[str]:
    if not run.evicts:
        return [run["method"] or "none"]
    usual = method_defaults(run["method"]) if run["method"] else run.choices
    extra = [c for g, c in run.choices.items() if g != "scorer" and run[g] is not None and c != usual.get(g)]
    parts = ["-".join(str(c) for c in [run["method"], run.choices["scorer"], *extra] if c is not None)]
    if run["budget"] is not None:
        parts.append(f"b{run['budget']:g}")
    elif run["budget_tokens"] is not None:
        parts.append(f"t{run['budget_tokens']}")
    return parts


def setting_parts(run: Run) -> list[str]:
    """Where the method is tried, and the nested settings."""
    parts = [run["job"].get("subject") or benchmark_name(run)]
    if run["limit"] is not None:
        parts.append(f"n{run['limit']}")
    parts.append(f"s{run['seed']}")
    if run["attention"] != "auto":
        parts.append(run["attention"])
    unsaid = NAMED if reads_tables(run) else (*NAMED, "model.tables")
    return parts + [n for n in run.nested if n.split("=")[0] not in unsaid]


def reads_tables(run: Run) -> bool:
    """Whether the scorer or the allocator reads a file from model.tables."""
    folder = Path(str(run["model"].get("tables")))
    files = [run[group].get("path") for group in ("scorer", "allocator") if run[group]]
    return any(folder in Path(file).parents for file in files if file)


NAMED = (
    "model.path",
    "model.name",
    "model.device",
    "model.device_map",
    "benchmark.length",
    "job.save",
)
"""Nested settings that the model's and benchmark's names already tell, or that change no result."""


def benchmark_name(run: Run) -> str:
    """What the benchmark calls itself; making it also checks its settings."""
    return name_of(json.dumps(run["benchmark"]))


@lru_cache
def name_of(settings: str) -> str:
    """Made once for the many runs of a sweep that are about one benchmark."""
    return str(create(json.loads(settings)).name)


def create(settings: Mapping[str, Any]) -> Any:
    """The object that `_target_` names. Raises InputError with the reason that its class gives."""
    for target in targets_in(settings):
        located(target)
    try:
        return instantiate(dict(settings), _convert_="all")
    except InstantiationException as e:
        cause = e.__cause__ or e
        raise InputError(
            str(cause) if isinstance(cause, (ValueError, OSError)) else f"{settings['_target_']}: {cause}"
        ) from e


def slug(text: str) -> str:
    """Safe and short as a part of a folder's name; what is cut is told apart by a hash."""
    clean = (
        re.sub(r"__+", "_", re.sub(r"[^\w.+=,-]+", "-", re.sub(r"[\[\]{}'\" ]", "", text), flags=re.ASCII)).strip(".-_")
        or "x"
    )
    return clean if len(clean) <= 60 else f"{clean[:50]}-{digest(text)}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@lru_cache
def method_defaults(method: str) -> Mapping[str, str]:
    """The option that conf/method/<method>.yaml chooses in each group, on top of those of conf/config.yaml."""
    chosen: dict[str, str] = {}
    for path in (CONF / "config.yaml", CONF / "method" / f"{method}.yaml"):
        if path.is_file():
            content: Any = OmegaConf.load(path)
            for entry in content.get("defaults", []):
                if isinstance(entry, DictConfig):
                    chosen.update({str(k).removeprefix("override ").lstrip("/"): v for k, v in entry.items()})
    return chosen


def resolve_run_id(*, _root_: DictConfig) -> str:
    return run_of(without_hydra(_root_), _root_.get("hydra")).id


def without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def model_name(path: Any) -> str:
    return slug(Path(str(path)).name.lower())


def shipped(path: str) -> str:
    """A folder that comes with this program: as it is named if the current folder has it, else its full path."""
    return path if Path(path).exists() else str(ROOT / path)


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("run_id", resolve_run_id, replace=True)
OmegaConf.register_new_resolver("model_name", model_name, replace=True)
OmegaConf.register_new_resolver("shipped", shipped, replace=True)
