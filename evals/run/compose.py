"""From overrides to a checked Run: every option exists, every key too, and every value is of the right kind.

`run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evals.run.conf import GROUPS, read_option
from evals.run.instantiate import InputError
from evals.run.old_names import translate_override
from evals.run.settings import Run, drop_hydra, resolve_run
from evals.text import suggest_nearest

KINDS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int, type(None))),
    float: ("a number", (float, int, type(None))),
}
"""What an option's file shows -> what is asked for, in words and types. A text may stand for a list or a number
("available", "auto"), and null says nothing: these are left to the class."""


def parse_overrides(texts: Sequence[str], known_files: bool) -> list[Override]:
    """Hydra's overrides. known_files: every option of a group has to be a file in conf/."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(list(texts))
    if known_files:
        check_options(overrides)
    return overrides


def expand_sweep(texts: Sequence[str], hydra: DictConfig, known_files: bool) -> list[list[str]]:
    """The overrides of each run of a sweep, those of the experiment's yaml included."""
    params = [translate_override(f"{k}={v}") for k, v in (hydra.sweeper.get("params") or {}).items()]
    return BasicSweeper.split_arguments(parse_overrides([*params, *texts], known_files), None)[0]


def check_options(overrides: Iterable[Override]) -> None:
    """Raise InputError unless every option that is chosen for a group is a file in that group's folder."""
    for o in overrides:
        options = GROUPS.get(o.key_or_group)
        if options is None or o.is_delete():
            continue
        value = o.value()
        chosen = (
            list(o.sweep_string_iterator()) if o.is_sweep_override() else value if isinstance(value, list) else [value]
        )
        if not chosen:
            raise InputError(f"{o.input_line} matches no {o.key_or_group}. Known: {', '.join(options)}")
        for name in chosen:
            if str(name).removesuffix(".yaml") not in options:
                said = "null" if name is None else str(name)
                near = suggest_nearest(said, options)
                raise InputError(f"no {o.key_or_group} named '{said}'.{near} Known: {', '.join(options)}")


def compose_run(overrides: Sequence[str], search: Sequence[str] = ()) -> Run:
    """The run that these overrides ask for. search: Hydra's override for further config folders, if there are any."""
    return check_run(compose_config(overrides, search))


def check_run(cfg: DictConfig) -> Run:
    HydraConfig.instance().set_config(cfg)  # what ${hydra:...} refers to
    check_kinds(cfg)
    return resolve_run(drop_hydra(cfg), cfg.hydra)


def compose_config(overrides: Sequence[str], search: Sequence[str]) -> DictConfig:
    """Compose the config. A key that does not exist is an InputError with its nearest neighbours."""
    try:
        return compose("config", overrides=[*search, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as e:
        missing = re.search(r"Could not override '([^']+)'", str(e))
        if missing is None:
            raise InputError(join_lines(e) + (f" {join_lines(e.__cause__)}" if e.__cause__ else "")) from e
        plain = [o for o in overrides if o.split("=")[0].lstrip("+~") in GROUPS]
        near = suggest_setting(missing.group(1), compose("config", overrides=[*search, *plain]))
        raise InputError(f"no setting named '{missing.group(1)}'.{near} All settings: python run.py --help") from e


def suggest_setting(key: str, cfg: DictConfig) -> str:
    """The nearest setting. For one inside a group: the nearest of that group's, or all of them."""
    known = sorted({*list_keys(cfg), *GROUPS})
    inside, _, last = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in known if inside and k.rpartition(".")[0] == inside]
    if not beside:
        return suggest_nearest(key, known)
    return suggest_nearest(last, beside, f"{inside}.") or f" {inside} has {', '.join(beside)}."


def list_keys(node: Any, prefix: str = "") -> Iterable[str]:
    """The dotted keys of a config, those of groups included."""
    for key in node:
        yield prefix + str(key)
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if OmegaConf.is_dict(child) and child:
            yield from list_keys(child, f"{prefix}{key}.")


def check_kinds(cfg: DictConfig) -> None:
    """Raise InputError for an override such as scorer.window=x whose value is not of the kind that conf/ shows.

    The class of a method or a benchmark takes what it is given, and "no" is true to Python. So the kind is checked
    before anything is made of it.
    """
    for text in cfg.hydra.overrides.task:
        key = text.lstrip("+~").split("=")[0]
        group, _, rest = key.partition(".")
        option = cfg.hydra.runtime.choices.get(group)
        if not rest or option is None or text.startswith("~"):
            continue
        usual = look_up(read_option(group, option), rest)
        words, allowed = KINDS.get(type(usual), ("", (object,)))
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, allowed) or (type(value) is bool and type(usual) in (int, float)):
            shown = str(usual).lower() if isinstance(usual, bool) else usual
            raise InputError(f"{text.lstrip('+')}: {words} is expected, as in conf/{group}/{option}.yaml ({shown})")


def look_up(node: Any, path: str) -> Any:
    """node["a"]["b"] for "a.b"; None where there is no such thing."""
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def join_lines(error: BaseException) -> str:
    """An exception's message as one line, without the libraries' own footers, and in our words where theirs puzzle."""
    lines = [line.strip() for line in str(error).splitlines()]
    footers = ("full_key:", "object_type=", "reference_type=", "See http")
    text = " ".join(line for line in lines if line and not line.startswith(footers)) or type(error).__name__
    text = re.sub(r"^Error merging override (\S+)", r"\1:", text)
    text = re.sub(r"^Error parsing override '(.*)' missing EQUAL at '<EOF>'$", r"'\1' is no NAME=VALUE", text)
    for kind, words in (("Float", "a number"), ("Integer", "a whole number")):
        text = re.sub(rf"Value '.*' of type '\w+' could not be converted to {kind}$", f"{words} is expected", text)
    text = re.sub(r"Value '.*' is not a valid bool \(type \w+\)$", "true or false is expected", text)
    return re.sub(r"^.*Missing mandatory value: (\S+).*$", r"\1 is not set: add \1=VALUE", text)
