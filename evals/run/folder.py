"""A run's folder: what it was asked for, where it was made, one line per sample, and the result that makes it finished.

config.yaml     the settings, resolved
run.json        provenance
samples.jsonl   one line per sample, appended and flushed; a line that a crash tore is dropped on the next start
result.json     written last and atomically: a run is finished if and only if it is there

records.py has the types of the last three.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from evals.run.conf import flatten
from evals.run.files import read_json, read_settings, write_json
from evals.run.identity import describe_experiment, is_begun, list_changes
from evals.run.instantiate import InputError
from evals.run.provenance import collect_provenance, quote_command, stamp_time
from evals.run.repeat import write_command
from evals.run.run_id import find_method, label_method
from evals.run.settings import METHOD_PARTS, Run
from lukv.artifacts import write_atomically


class FolderInUse(OSError):
    """Another process writes to the folder."""


class RunFolder:
    """A run's folder, open for one process at a time. The lock goes with the process: a dead one leaves none behind.

    A finished run is only read: that takes no lock, and no disk that can be written to.
    """

    def __init__(self, run: Run, wait: bool = False) -> None:
        """wait: for another process that has the folder; else FolderInUse is raised."""
        self.run, self.path, self.wait = run, run.folder, wait
        self._lock: TextIO | None = None
        self._new: list[Path] = []  # folders that are made for it, the innermost first

    def __enter__(self) -> RunFolder:
        try:
            if not self.finished:
                self._take_lock()
            for draft in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
                with suppress(OSError):  # it may lie on a read-only disk
                    draft.unlink()
            self._check_same()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def begun(self) -> bool:
        return is_begun(self.path)

    def _take_lock(self) -> None:
        """Hold the lock file. A holder that wrote nothing removes it, and a lock on a removed file holds nothing."""
        path = self.path / ".lock"
        while self._lock is None:
            self._new += [p for p in (self.path, *self.path.parents) if not p.exists() and p not in self._new]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                lock.close()
                raise FolderInUse(f"{self.path} is being written by {owner}: wait for it, or stop it") from None
            except OSError as e:
                self._lock = lock
                raise OSError(
                    f"{path}: this file system has no locks ({e.strerror}), so two processes could write one run: "
                    f"choose a folder on another one with runs=FOLDER"
                ) from e
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                self._lock = lock
            else:
                lock.close()
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {platform.node()}")
        self._lock.flush()

    def __exit__(self, *_: object) -> None:
        """Where nothing was written, leave nothing that looks like a run, and no folder that was made for it."""
        began = self.begun
        if self._lock is not None:
            if not began:
                (self.path / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # what a full disk did not take of the lock's text
                self._lock.close()
            self._lock = None
        for folder in () if began else self._new:
            with suppress(OSError):  # another run's folder is in it
                folder.rmdir()

    @property
    def inputs(self) -> dict[str, str]:
        """Setting -> fingerprint of the file or folder that it names."""
        return self.run.inputs

    def _check_same(self) -> None:
        """The same folder means the same experiment. Only another process that has just begun here is told so: a run
        whose name is taken has another folder (identity.find_folder)."""
        if not self.begun:
            return
        was = read_settings(self.path / "config.yaml")
        changes = list_changes(was, read_json(self.path / "run.json"), self.run)
        if changes:
            raise InputError(
                f"{self.path} was made with other settings ({'; '.join(changes)}). "
                f"The same command again takes another folder"
            )

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write what the run is. When it goes on after a stop, the facts must still be the same."""
        (self.path / "error.json").unlink(missing_ok=True)
        path = self.path / "run.json"
        if self.begun:
            old = read_json(path)
            changes = list_differences(old.get("prompts", {}), dict(facts.get("prompts", {})))
            if changes:
                raise InputError(
                    f"{self.path}: the prompts have changed since it was begun ({'; '.join(changes)}). If the chat "
                    f"template says today's date, model.date=YYYY-MM-DD pins it; else remove that folder"
                )
            write_json(path, {**old, "resumed": [*old.get("resumed", []), stamp_time()]})
            return
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(self.run.config), sort_keys=False).encode())
        about = {"run_id": self.run.id, "config_hash": self.run.hash, **collect_provenance(), "inputs": self.inputs}
        write_json(
            path,
            {**about, **facts, "command": quote_command(), "repeat": write_command(self.run), "started": stamp_time()},
        )

    def read_result(self) -> dict[str, Any] | None:
        """The content of result.json; None if the run is not finished."""
        path = self.path / "result.json"
        return read_json(path) if path.exists() else None

    def read_samples(self) -> dict[str, dict[str, Any]]:
        """The samples recorded so far, by id. The last line of each counts, and a torn last line is cut off."""
        return {line["id"]: line for line in read_samples(self.path / "samples.jsonl", repair=True)}

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append whole lines or none of them: on a full disk, what was written of them is taken back."""
        path = self.path / "samples.jsonl"
        content = memoryview("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        with path.open("ab", buffering=0) as f:
            before = f.tell()
            try:
                while content:
                    content = content[f.write(content) :]
                os.fsync(f.fileno())
            except OSError as e:
                os.truncate(path, before)
                raise OSError(e.errno, e.strerror, str(path)) from e

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result. From now on the run is finished."""
        about = read_json(self.path / "run.json")
        write_json(self.path / "run.json", {**about, "attention": result.get("attention"), "finished": stamp_time()})
        write_json(self.path / "result.json", result)


def read_experiment(folder: Path) -> dict[str, str | None]:
    """What the results that stand in one table with this folder's agree in: identity.describe_experiment."""
    return describe_experiment(read_settings(folder / "config.yaml"), read_json(folder / "run.json"))


def name_result_method(result: Mapping[str, Any]) -> str | None:
    """What a result's method and its parts are called today, whatever it was called then. None where nothing was
    evicted, and for the oldest results, which do not have the parts."""
    chosen = {group: result["config"].get(group) for group in METHOD_PARTS}
    return label_method(find_method(result["method"], chosen), chosen) if chosen["scorer"] else None


def read_samples(path: Path, repair: bool = False) -> list[dict[str, Any]]:
    """The lines of a samples.jsonl. repair: cut off a torn last line."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        os.truncate(path, len(whole))
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            lines.append(json.loads(line.decode()))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{path}, line {number} is not JSON ({e}): remove the line and run again") from None
        if not isinstance(lines[-1], dict) or not {"id", "task"} <= lines[-1].keys():
            raise ValueError(f"{path}, line {number} is not a sample: remove the line and run again")
    return lines


def list_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """["budget: 0.2 -> 0.3", ...] between two nested mappings."""
    a, b = dict(flatten(old)), dict(flatten(new))
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
