"""Names as people type them and as folders may have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

BUDGETS = ("budget", "budget_tokens", "budget_bytes")
"""The settings that say how much a run keeps: one of them does, or none where everything is kept."""

CACHE_DTYPES: dict[str, int | None] = {"auto": None, "int8": 8, "int4": 4}
"""What the entries of a cache may be stored in, and the bits of a number; None: the model's own dtype."""


def suggest_nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that names the most similar of the known names, with a space before it. Empty if none is similar.

    >>> suggest_nearest("snapk", ["snapkv", "keydiff"])
    " Did you mean 'snapkv'?"
    """
    near = get_close_matches(name, list(known), 1, 0.5)
    return f" Did you mean '{prefix}{near[0]}'?" if near else ""


def clean_text(text: str) -> str:
    """The text in safe characters: letters, digits and a few signs."""
    safe = re.sub(r"[^\w.+=,-]+", "-", re.sub(r"[\[\]{}'\" ]", "", text), flags=re.ASCII)
    return re.sub(r"__+", "_", safe).strip(".-_") or "x"


def check_cache_dtype(name: str) -> None:
    """Raise ValueError for a cache_dtype that there is none of."""
    if name not in CACHE_DTYPES:
        near = suggest_nearest(name, CACHE_DTYPES)
        raise ValueError(f"cache_dtype={name} is not known.{near} Choose one of {', '.join(CACHE_DTYPES)}")
