"""Slow things that say why: reading large weights, loading a model, making long samples."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 3.0


@contextmanager
def explain_wait(what: str, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Say on stderr what the block does, if it takes longer than `patience_s`. What is quick says nothing."""
    line = {"file": sys.stderr, "flush": True}
    timer = threading.Timer(patience_s, print, (f"{what} ...",), line)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
