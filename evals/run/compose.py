"""From overrides to a checked Run: every option exists, every key too, and every value is of the right kind.

`run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evals.run.instantiate import InputError
from evals.run.settings import Run, drop_hydra, resolve_run
from lukv.conf import CONF, GROUPS, read_option, read_yaml
from lukv.names import suggest_nearest

KINDS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int, type(None))),
    float: ("a number", (float, int, type(None))),
}
"""What an option's file shows -> what is asked for, in words and types. A text may stand for a list or a number
("available", "auto"), and null says nothing: these are left to the class."""


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


OFFERED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "hydra/launcher": (
        ("basic", "submitit_slurm"),
        "cluster=local does a sweep here, in one process that shares the prefills; cluster=slurm sends it to Slurm",
    ),
    "hydra/sweeper": (("basic",), "-m does every combination of the values named"),
}
"""Hydra's plugins that run.py works with, and what to do instead of choosing another."""


def check_plugin(group: str, choice: Any) -> None:
    """Raise InputError for a launcher or sweeper under which a sweep's runs could not be followed to their end."""
    known, instead = OFFERED.get(group, ((choice,), ""))
    if choice not in known:
        raise InputError(f"{group}={choice} is not offered here: {instead}")


def check_hydra(cfg: DictConfig) -> None:
    """Raise InputError unless what conf/config.yaml says to Hydra still stands: it decides where run folders lie."""
    for group in OFFERED:
        check_plugin(group, cfg.hydra.runtime.choices.get(group))
    usual = read_yaml(CONF / "config.yaml")["hydra"]
    for key in ("run.dir", "sweep.dir", "sweep.subdir", "output_subdir", "job.chdir"):
        now = look_up(OmegaConf.to_container(cfg.hydra), key)
        if now != look_up(usual, key):
            raise InputError(
                f"hydra.{key}={str(now).lower() if isinstance(now, bool) else now} cannot be set: a run's folder is "
                f"named by what decides its result. runs=FOLDER says where the run folders lie"
            )


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
