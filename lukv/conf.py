"""conf/ as files: where it lies, which options each group has, and what an option's file says.

The command line composes its settings with Hydra (evals/run); a library's user has only names. Both read the same
files. Nothing heavier than a YAML reader is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lukv.names import clean_text

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Where conf/ and models/ lie: the repository, or an installed package that has them inside."""
CONF = ROOT / "conf"

GROUPS = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"}
"""Group -> names of its options."""


FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader in C, where PyYAML has it."""


class Loader(FAST):  # type: ignore[misc]
    """YAML as OmegaConf reads it: 1e-3 is a number, and a date is a text."""


EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of conf/. Empty if it says nothing."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader) or {}  # noqa: S506 - a SafeLoader


def read_method_defaults(method: str) -> Mapping[str, str]:
    """The option that conf/method/<method>.yaml chooses in each group, on top of those of conf/config.yaml."""
    return {**read_choices(CONF / "config.yaml"), **read_choices(CONF / "method" / f"{method}.yaml")}


@lru_cache
def read_choices(path: Path) -> Mapping[str, str]:
    """The option that a file of conf/ chooses in each group. Empty if there is no such file."""
    chosen: dict[str, str] = {}
    for entry in read_yaml(path).get("defaults", []) if path.is_file() else []:
        if isinstance(entry, dict):
            chosen.update({str(k).removeprefix("override ").lstrip("/"): v for k, v in entry.items()})
    return chosen


@lru_cache
def read_option(group: str, option: str) -> Mapping[str, Any]:
    """conf/GROUP/OPTION.yaml on top of the options it builds on, nothing resolved. Empty if there is no such file.

    An option that it holds (`/scorer@inner: snapkv` in a scorer around another) stands under its key.
    """
    path = CONF / group / f"{option}.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path)
    whole: dict[str, Any] = {}
    for base in content.pop("defaults", ()):
        if isinstance(base, dict):
            for place, held in base.items():
                of, _, key = place.lstrip("/").partition("@")
                whole[key] = read_option(of, held)
        elif base != "_self_":
            whole.update(read_option(group, base))
    return {**whole, **content.get(group, content)}  # files of `# @package _global_` name their group


def find_shipped(path: str) -> str:
    """A folder of this program's own: in its repository, wherever it is started. An installed package is written to by
    nobody: there it is the working directory's, unless the package has it."""
    own = ROOT / path
    return path if Path.cwd() == ROOT or (ROOT == PACKAGE and not own.exists()) else str(own)


def name_model(path: Any) -> str:
    """What a model is called that conf/ has no name for: the last part of its path."""
    return clean_text(Path(str(path)).name.lower())


RESOLVERS: Mapping[str, Callable[[str], str]] = {"shipped": find_shipped, "model_name": name_model}
"""The functions of `${function:argument}` in conf/, besides those that only a run has."""


def resolve(group: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one group with every `${...}` replaced, also in what it holds. settings: of all groups, by name.
    `${.key}` is the value beside."""
    return fill(settings[group], settings)


def fill(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    def find(key: str) -> Any:
        function, colon, argument = key.partition(":")
        if colon:
            return RESOLVERS[function](argument)
        node: Any = own if key.startswith(".") else settings
        for part in key.lstrip(".").split("."):
            node = node[part]
        return node

    def replace(value: Any) -> Any:
        if isinstance(value, Mapping):
            return fill(value, settings)
        while isinstance(value, str) and (inner := re.search(r"\$\{([^{}]+)\}", value)):
            found = find(inner[1])
            value = found if inner[0] == value else value.replace(inner[0], str(found))
        return value

    return {key: replace(value) for key, value in own.items()}
