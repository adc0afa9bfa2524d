"""Names as people type them and as folders may have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


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
