"""Values of nested settings: of the kind that the option's file in conf/ shows.

A class of a method or a benchmark takes what it is given, and "no" is true to Python: the kind is checked before
anything is made of it. Imported by `run.py --help`: nothing heavy here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from evals.run.settings import CONF, InputError

KINDS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int, type(None))),
    float: ("a number", (float, int, type(None))),
}
"""What the file shows -> what is asked for, in words and types. Texts may stand for a list or a number ("available",
"auto"), and what is null says nothing: these are their class's affair."""


def check_kinds(cfg: DictConfig) -> None:
    """Raise InputError for an override such as scorer.window=x whose value is not of the kind that the file has."""
    for text in cfg.hydra.overrides.task:
        key = text.lstrip("+~").split("=")[0]
        group, _, rest = key.partition(".")
        option = cfg.hydra.runtime.choices.get(group)
        if not rest or option is None or text.startswith("~"):
            continue
        usual = inside(as_written(group, option), rest)
        words, allowed = KINDS.get(type(usual), ("", (object,)))
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, allowed) or (type(value) is bool and type(usual) in (int, float)):
            shown = str(usual).lower() if isinstance(usual, bool) else usual
            raise InputError(f"{text.lstrip('+')}: {words} is expected, as in conf/{group}/{option}.yaml ({shown})")


@lru_cache
def as_written(group: str, option: str) -> Mapping[str, Any]:
    """conf/GROUP/OPTION.yaml on top of the options it builds on, nothing resolved; empty for one from elsewhere."""
    path = CONF / group / f"{option}.yaml"
    if not path.is_file():
        return {}
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    whole: dict[str, Any] = {}
    for base in content.pop("defaults", ()):
        if isinstance(base, str) and base != "_self_":
            whole.update(as_written(group, base))
    return {**whole, **content.get(group, content)}  # `# @package _global_` files name their group


def inside(node: Any, path: str) -> Any:
    """node["a"]["b"] for "a.b"; None where there is no such thing."""
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
