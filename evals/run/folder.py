"""A run's folder: what it was asked for, where it was made, one line per sample, and the result that makes it finished.

config.yaml     the settings, resolved
run.json        provenance
samples.jsonl   one line per sample, appended and flushed; a line that a crash tore is dropped on the next start
result.json     written last and atomically: a run is finished if and only if it is there
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import yaml

from evals.run.settings import ROOT, InputError, Run, subject
from lukv.artifacts import write_atomically

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "triton",
    "flash-attn",
)
HASHED_WHOLE = 256 * 2**20
"""Files up to this size are told apart by content, larger ones by size and modification time."""


class RunFolder:
    """Open for one process at a time: the lock goes with the process, so a dead one leaves none behind."""

    def __init__(self, run: Run, wait: bool = False) -> None:
        self.run, self.path, self.wait = run, run.folder, wait

    def __enter__(self) -> RunFolder:
        self._lock = self._locked()
        try:
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {platform.node()}")
            self._lock.flush()
            for draft in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
                draft.unlink()
            self._check_same()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _locked(self) -> TextIO:
        """The lock file, held. A holder that wrote nothing removes it: a lock on a removed file holds nothing."""
        path = self.path / ".lock"
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = path.open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if self.wait else fcntl.LOCK_NB))
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                lock.close()
                raise RuntimeError(f"{self.path} is being written by {owner}: wait for it, or stop it") from None
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
            lock.close()

    def __exit__(self, *_: object) -> None:
        began = (self.path / "run.json").exists()
        if not began:  # nothing was written: leave nothing that looks like a run
            (self.path / ".lock").unlink(missing_ok=True)
        with suppress(OSError):  # what a full disk did not take of the lock's text
            self._lock.close()
        if not began and not any(self.path.iterdir()):
            self.path.rmdir()

    def _check_same(self) -> None:
        """The same folder means the same experiment: settings and input files as when it was begun."""
        if not (self.path / "run.json").exists():
            return
        was = read_settings(self.path / "config.yaml")
        changes = differences(subject(was), self.run.subject)
        inputs = read_json(self.path / "run.json").get("inputs", {})
        changes += [f"content of {k}" for k, v in input_files(self.run.subject).items() if inputs.get(k, v) != v]
        if changes:
            raise InputError(
                f"{self.path} was made with other settings ({'; '.join(changes)}): remove that folder to run it anew"
            )

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write what the run is. When it goes on after a stop, the facts must still be the same."""
        (self.path / "error.json").unlink(missing_ok=True)
        path = self.path / "run.json"
        if path.exists():
            old = read_json(path)
            changes = differences(old.get("prompts", {}), dict(facts.get("prompts", {})))
            if changes:
                raise InputError(
                    f"{self.path}: the prompts have changed since it was begun ({'; '.join(changes)}). Remove it"
                )
            write_json(path, {**old, "resumed": [*old.get("resumed", []), now()]})
            return
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(self.run.config), sort_keys=False).encode())
        about = {
            "run_id": self.run.id,
            "config_hash": self.run.hash,
            **provenance(),
            "inputs": input_files(self.run.subject),
        }
        write_json(path, {**about, **facts, "command": command(), "started": now()})

    def result(self) -> dict[str, Any] | None:
        path = self.path / "result.json"
        return read_json(path) if path.exists() else None

    def samples(self) -> dict[str, dict[str, Any]]:
        """The samples recorded so far, by id: the last line of each counts. A torn last line is cut off."""
        return {line["id"]: line for line in read_samples(self.path / "samples.jsonl", repair=True)}

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Whole lines or none of them: on a full disk what was written of them is taken back."""
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
        run = read_json(self.path / "run.json")
        write_json(self.path / "run.json", {**run, "attention": result.get("attention"), "finished": now()})
        write_json(self.path / "result.json", result)


def read_samples(path: Path, repair: bool = False) -> list[dict[str, Any]]:
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """["budget: 0.2 -> 0.3", ...] between two nested mappings."""
    a, b = dict(flat(old)), dict(flat(new))
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in sorted({*a, *b}) if alone(a.get(k)) != alone(b.get(k))]


def alone(value: Any) -> Any:
    """benchmark.tasks=vt is benchmark.tasks=[vt], and both lead to one folder."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flat(value, f"{prefix}.{key}".lstrip("."))
    elif node not in (None, {}):
        yield prefix, node


def input_files(config: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints of the files that the settings name: budget tables, data, the weights in a model folder."""
    prints = {}
    for key, value in flat(config):
        if not isinstance(value, str) or "\0" in value or len(value) > 4096:
            continue
        path = Path(value)
        if path.is_file():
            prints[value] = fingerprint(path)
        elif key in ("model.path", "allocator.path") and path.is_dir():
            files = [f for f in sorted(path.iterdir()) if f.suffix in (".safetensors", ".npy")]
            prints.update({str(f): fingerprint(f) for f in files})
    return prints


def fingerprint(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > HASHED_WHOLE:
        return f"{stat.st_size} bytes, {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def provenance() -> dict[str, Any]:
    """Which code, on what."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "git_sha": git("rev-parse", "HEAD"),
        "dirty": None if (changed := git("status", "--porcelain")) is None else bool(changed),
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := installed(p))}},
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def info(run: Run) -> None:
    """What a bug report needs: printed, nothing written."""
    about = provenance()
    print(json.dumps({"command": command(), **about, "settings": run.config}, indent=2, default=str))


def command() -> str:
    return shlex.join(["python", *sys.argv])


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [x.split(":", 1)[1] for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    return names[0].strip() if names else platform.processor() or platform.machine()


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged ({e}): remove {path.parent} and run again") from e


def read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as e:
        raise ValueError(f"{path} is damaged ({' '.join(str(e).split())}): remove {path.parent} and run again") from e
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged (it has no settings): remove {path.parent} and run again")
    return settings


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    write_atomically(path, text.encode())
