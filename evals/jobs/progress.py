"""Say how far a run is."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar on a terminal; in a log a plain line every tenth of the way."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done, self.start, self.first = name, total, done, time.perf_counter(), done
        self.bar = tqdm(total=total, initial=done, desc=name, unit="sample") if sys.stderr.isatty() else None
        if self.bar is None:
            print(
                f"{name}: {total} samples" + (f", {done} of them done before" if done else ""),
                file=sys.stderr,
                flush=True,
            )

    def update(self, n: int) -> None:
        before, self.done = self.done, self.done + n
        if self.bar is not None:
            self.bar.update(n)
        elif self.done * 10 // self.total > before * 10 // self.total:
            passed = time.perf_counter() - self.start
            left = passed / (self.done - self.first) * (self.total - self.done)
            print(
                f"{self.name}: {self.done}/{self.total}, {passed:.0f} s, about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
