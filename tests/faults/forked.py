"""run.py in a fork of this process: a start costs milliseconds, since torch and the model are there already."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import initialize_config_dir

from evals.run.compose import compose_run
from evals.run.run_id import find_job
from evals.run.settings import Run
from evals.run.sweep import Sweep
from lukv.conf import CONF

Event = Callable[[str], None]


def typed(*args: str) -> int:
    """run.py with these arguments; its exit code."""
    import run

    sys.argv = ["run.py", *args]
    try:
        return run.run()
    except SystemExit as stopped:
        return int(stopped.code or 0)


def composed(*args: str) -> Run:
    """The run that the arguments ask for: composing is most of the time that a small run takes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_run(args)


def job(run: Run, runs: Path) -> Callable[[], int]:
    """Its job in another folder."""
    moved = Run({**run.config, "runs": str(runs)}, run.choices, run.nested)
    return lambda: find_job(moved.config)(moved, Sweep()).do() or 0


def start(log: Path, work: Callable[[], int], event: Event | None = None) -> int:
    """Start `work` -> process id. `log`: what it prints. `event`: called there around every write that must last, with
    its name."""
    if child := os.fork():
        return child
    code = 99
    try:
        torch.set_num_threads(1)  # OpenMP's pool of threads does not come along
        sys.stdout = sys.stderr = log.open("w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if event is not None:
            announce(event)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(process: int) -> int:
    """Wait for it; exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def announce(event: Event) -> None:
    """Call event("NAME before"), event("NAME after") around the moments at which a file becomes durable."""
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        name = kind(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        event(f"{name} written")
        fsync(descriptor)
        event(f"{name} synced")

    def replaced(self: Path, target: Path) -> Path:
        done = replace(self, target)
        event(f"{kind(Path(target).name)} in place")
        return done

    os.fsync, Path.replace = synced, replaced  # type: ignore[method-assign,assignment]


def kind(name: str) -> str:
    """The file that a draft becomes."""
    return ".".join(name.strip(".").split(".")[:2]) if name.endswith(".tmp") else name


class KillAt:
    """SIGKILL at the n-th event; `tear` then cuts an append in the middle of its line. Notes each event in `notes`."""

    def __init__(self, notes: Path, n: int | None = None, tear: bool = False) -> None:
        self.notes, self.n, self.tear, self.count = notes, n, tear, 0

    def __call__(self, name: str) -> None:
        self.count += 1
        with self.notes.open("a") as file:
            file.write(f"{name}\n")
        if self.count == self.n:
            if self.tear and name == "samples.jsonl written":
                for path in Path("/proc/self/fd").iterdir():
                    if path.exists() and str(path.readlink()).endswith("samples.jsonl"):
                        size = path.stat().st_size
                        os.truncate(path, max(0, size - 25))
            os.kill(os.getpid(), signal.SIGKILL)


def noted(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []
