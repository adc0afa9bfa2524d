"""How a method looks in figures: the same colour, marker, dashes and name in every report. conf/looks.yaml says which.

A label is what evals.report.runs.label makes of a run: the method, its scorer and allocator where they are not its own,
and settings that are not its own ("lukv-snapkv-lu_curve scorer.window=16").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from omegaconf import OmegaConf

from lukv.conf import CONF, GROUPS, read_method_defaults

MORE_COLOURS = ("#332288", "#117733", "#999933", "#CC6677", "#44AA99", "#661100")
MORE_MARKERS = ("P", "d", "<", ">", "p", "h")
MORE_DASHES = ((6.0, 2.0), (2.0, 1.0), (6.0, 1.5, 2.0, 1.5), (1.5, 2.0))


@dataclass(frozen=True)
class Look:
    """colour "#rrggbb"; marker of matplotlib; dashes: stroke and gap in line widths, () for a solid line; hollow: the
    marker is not filled, because the label has settings of its own."""

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()
    hollow: bool = False

    def line(self) -> dict[str, Any]:
        """As arguments of matplotlib's plot and errorbar."""
        dashed: dict[str, Any] = {"dashes": self.dashes} if self.dashes else {}
        face = "white" if self.hollow else self.colour
        size = 8 if self.marker == "*" else 5
        return {
            **{"color": self.colour, "marker": self.marker, "markersize": size, "markerfacecolor": face},
            **{"linewidth": 1.5, **dashed},
        }


@lru_cache
def find_look(label: str) -> Look:
    """The look of a label. It depends on nothing else, so no other line of a figure changes it."""
    looks = read_looks()
    name, *settings = label.split()
    method, *parts = name.split("-")
    scorer = find_scorer(label)
    dashes = next((tuple(looks["dashes"][p]) for p in (*parts, method) if p in looks["dashes"]), ())
    if settings:
        dashes = tuple(looks["dashes"].get(" ".join(settings), ())) or choose(MORE_DASHES, " ".join(settings))
    return Look(
        looks["colours"].get(method) or choose(MORE_COLOURS, method),
        looks["markers"].get(scorer) or choose(MORE_MARKERS, scorer),
        dashes,
        hollow=bool(settings),
    )


def find_scorer(label: str) -> str:
    """The scorer that the label names, or else the method's own. Small multiples have a panel for each."""
    method, *parts = label.split()[0].split("-")
    own = read_method_defaults(method).get("scorer") or method
    return next((part for part in parts if part in GROUPS["scorer"]), own)


def find_name(label: str, names: Mapping[str, str] | None = None) -> str:
    """What figures and tables for papers call a label. `names`: label -> name, before those of conf/looks.yaml.

    Settings that are not the method's own stay behind its name. A label that nobody named is its own name.
    """
    known = {**read_looks()["names"], **(names or {})}
    method, *settings = label.split()
    return str(known.get(label) or " ".join([known.get(method, method), *settings]))


def find_allocator(option: str) -> str:
    """What figures and tables call an allocator that stands beside any scorer."""
    return str(read_looks()["allocators"].get(option, option))


@lru_cache
def read_looks() -> Mapping[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "looks.yaml"))
    return dict(content)


def choose(from_these: tuple[Any, ...], name: str) -> Any:
    """One of them, always the same for a name."""
    return from_these[crc32(name.encode()) % len(from_these)]
