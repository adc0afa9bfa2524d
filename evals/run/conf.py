"""conf/ as files: where it lies, which options each group has, and what an option's file says.

Hydra composes the settings. What is here answers questions that Hydra does not: which value an override replaces, and
which options a method chooses by itself. `run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Where conf/ and models/ lie: the repository, or an installed package that has them inside."""
CONF = ROOT / "conf"

GROUPS = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"}
"""Group -> names of its options."""


@lru_cache
def read_method_defaults(method: str) -> Mapping[str, str]:
    """The option that conf/method/<method>.yaml chooses in each group, on top of those of conf/config.yaml."""
    chosen: dict[str, str] = {}
    for path in (CONF / "config.yaml", CONF / "method" / f"{method}.yaml"):
        if path.is_file():
            content: Any = OmegaConf.load(path)
            for entry in content.get("defaults", []):
                if isinstance(entry, DictConfig):
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
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    whole: dict[str, Any] = {}
    for base in content.pop("defaults", ()):
        if isinstance(base, dict):
            for place, held in base.items():
                of, _, key = place.lstrip("/").partition("@")
                whole[key] = read_option(of, held)
        elif base != "_self_":
            whole.update(read_option(group, base))
    return {**whole, **content.get(group, content)}  # files of `# @package _global_` name their group


def list_leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of a dotted key and a value, None among them."""
    if not isinstance(node, Mapping):
        yield prefix, node
        return
    for key, value in node.items():
        yield from list_leaves(value, f"{prefix}.{key}".lstrip("."))


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The same without the settings that are None."""
    return ((key, value) for key, value in list_leaves(node, prefix) if value is not None)
