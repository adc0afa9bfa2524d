"""Say how far a job is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """On a terminal one line that is written over; elsewhere a plain line every tenth of the way. Both fit into 50
    columns, so the name, which may be longer, has a line of its own before them."""

    def __init__(self, name: str, total: int, unit: str = "samples", stream: TextIO | None = None) -> None:
        self.name, self.total, self.unit, self.stream = name, total, unit, stream or sys.stderr
        self.done: int | None = None
        self.open = False  # is the cursor behind a line that is to be written over?

    def reach(self, done: int) -> None:
        """So many are done. The first call says how many were done before: they took no time."""
        if self.done is None:
            self.start, self.first = time.perf_counter(), done
            before = f", {done} of them done before" if done else ""
            print(f"{self.name}\n{self.total} {self.unit}{before}", file=self.stream, flush=True)
        elif done > self.done:
            if self.stream.isatty():
                print(f"\r\x1b[K{self.line(done)}", end="", file=self.stream, flush=True)
                self.open = True
            elif done * 10 // self.total > self.done * 10 // self.total:
                print(self.line(done), file=self.stream, flush=True)
        self.done = done

    def line(self, done: int) -> str:
        passed = time.perf_counter() - self.start
        left = passed / (done - self.first) * (self.total - done)
        return f"{done}/{self.total} {self.unit}, {duration(passed)}, about {duration(left)} left"

    def close(self) -> None:
        if self.open:
            print(file=self.stream, flush=True)


@contextmanager
def show_progress(name: str, total: int, unit: str = "samples") -> Iterator[Callable[[int], None]]:
    """What is yielded is told how many are done: at once how many were done before, then after each step."""
    progress = Progress(name, total, unit)
    try:
        yield progress.reach
    finally:
        progress.close()


def duration(seconds: float) -> str:
    """
    >>> duration(59.6), duration(3599), duration(7300)
    ('60 s', '60 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
