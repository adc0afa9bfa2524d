"""Ctrl-C, SIGTERM and a reader who leaves (`| head`): no result that was computed is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def finish_first(what: str) -> Iterator[None]:
    """Hold a signal back until the end of the block, then raise KeyboardInterrupt. A second signal raises it at once.

    what: what is finished first ("the batch at hand"), for the user who waits. Python takes signals in the main thread
    only; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def wait(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with suppress(RuntimeError):  # the stream is in the middle of a line of the main program
            print(f"run.py: stops after {what}; once more: at once", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, wait) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


@contextmanager
def survive_closed_pipe() -> Iterator[None]:
    """End the block where nobody reads what it prints any more. What is printed from then on goes nowhere."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
