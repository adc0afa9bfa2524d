"""Nested settings as flat ones.

`run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


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
