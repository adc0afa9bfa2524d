"""From a `_target_` to the object it names, and the one line that says why there is none.

`run.py --help` imports this module, so nothing heavier than Hydra is imported here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from evals.errors import InputError
from lukv.names import suggest_nearest

OURS = ("lukv", "baselines", "evals")


def locate(target: str) -> Any:
    """Import the class or function of that dotted name.

    Raises InputError unless it is defined in the package that it is named by, or in one of ours:
    evals.x.subprocess.run is not evals' own.
    """
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # Hydra would log the error that is raised below
    try:
        found = get_object(target)
    except Exception as e:  # importing a module can raise anything
        place, _, name = target.rpartition(".")
        if place in sys.modules:
            near = suggest_nearest(name, dir(sys.modules[place]))
            raise InputError(f"_target_={target}: {place} has no {name}.{near}") from e
        raise InputError(f"_target_={target} cannot be imported: {' '.join(str(e.__cause__ or e).split())}") from e
    home = str(getattr(found, "__module__", None)).split(".")[0]
    if home not in (target.split(".")[0], *OURS) or not callable(found):
        raise InputError(f"_target_={target} is no class or function of {target.split('.')[0]}'s own (it is {home}'s)")
    return found


def create(settings: Mapping[str, Any]) -> Any:
    """Make the object that `_target_` names. Raises InputError with the reason that its class gives."""
    for target in find_targets(settings):
        locate(target)
    try:
        return instantiate(dict(settings), _convert_="all")
    except InstantiationException as e:
        cause = e.__cause__ or e
        raise InputError(
            str(cause) if isinstance(cause, (ValueError, OSError)) else f"{settings['_target_']}: {cause}"
        ) from e


def find_targets(node: Any) -> Iterator[str]:
    """Every `_target_` in nested settings."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from find_targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_targets(value)


def check_targets(node: Any, allowed: list[str], where: str = "") -> None:
    """Raise InputError unless every `_target_` in nested settings is in an allowed package."""
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
