"""What input files hold, in 32 digits: a run is told by the contents of its files, never by where they lie.

`run.py --help` imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from evals.run.conf import flatten
from evals.run.waiting import explain_wait
from evals.text import size
from lukv.artifacts import write_atomically

PATH_KEYS = ("path", "data", "sources", "prepared", "tokenizer", "code", "prose")
"""Settings that name files. Any other one does if it looks like a path: with a slash or an ending."""

MODEL_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")
"""What a model is read from: config, generation config, tokenizer, chat template, weights. Its folder may hold more."""

LARGE = 256 * 2**20
"""Bytes. The fingerprint of a larger file is kept on this machine, so that it is read whole only once."""


def fingerprint_inputs(settings: Mapping[str, Any]) -> dict[str, str]:
    """Dotted setting -> fingerprint of the file or the folder that it names, where there is one."""
    paths = ((key, find_path(key, value)) for key, value in flatten(settings))
    return {key: fingerprint(path, key.startswith("model.")) for key, path in paths if path is not None}


def find_path(key: str, value: Any) -> Path | None:
    """The file or folder that a setting names; None where it names none."""
    path = Path(value).expanduser() if names_path(key, value) else None
    return path if path is not None and path.exists() else None


def names_path(key: str, value: Any) -> bool:
    """Whether a setting's value may be a path, or the name of data or a model on the hub."""
    last = key.rpartition(".")[2]
    if not isinstance(value, str) or last == "_target_" or "\0" in value or len(value) > 4096:
        return False
    return last in PATH_KEYS or bool(re.search(r"[/\\]|\.\w+$", value))


def fingerprint(path: Path, model: bool = False) -> str:
    """Of a file's content, or of the names and contents of all files in a folder but the hidden ones. model: of those
    that a model is read from."""
    if path.is_file():
        return fingerprint_file(path)
    if model:
        files: Iterable[Path] = (file for file in path.iterdir() if file.suffix in MODEL_FILES)
    else:
        files = path.rglob("*")
    names = sorted((file.relative_to(path).as_posix(), file) for file in files if file.is_file())
    found = [(name, fingerprint_file(file)) for name, file in names if not re.search(r"(^|/)\.", name)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def fingerprint_file(path: Path) -> str:
    at = path.stat()
    return _read_fingerprint(path.resolve(), at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@lru_cache(maxsize=4096)
def _read_fingerprint(path: Path, *state: int) -> str:
    """The runs of a sweep name the same files. A file that changes gets another time, and is read again."""
    if state[1] <= LARGE:
        return hash_content(path)
    key = hashlib.sha256(json.dumps([str(path), *state]).encode()).hexdigest()
    note = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lukv" / "fingerprints" / key
    with suppress(OSError):  # without a note the file is read
        return note.read_text()
    with explain_wait(f"reading {path} ({size(state[1])}) for its fingerprint, once on this machine"):
        found = hash_content(path)
    with suppress(OSError):  # a home that cannot be written to only costs time
        write_atomically(note, found.encode())
    return found


def hash_content(path: Path) -> str:
    """Of a .safetensors file the tensors alone: when and by what a table was made does not change what it says."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        whole.update(read_header(file) if path.suffix == ".safetensors" else b"")
        while block := file.read(2**22):
            whole.update(block)
    return whole.hexdigest()[:32]


def read_header(file: BinaryIO) -> bytes:
    """The header of a .safetensors file, in one order and without metadata. The file is left where the tensors begin,
    or at its start where it is no such file."""
    size = int.from_bytes(file.read(8), "little")
    with suppress(ValueError, RecursionError):
        header = json.loads(file.read(size)) if size < LARGE else None
        if isinstance(header, dict):
            header.pop("__metadata__", None)
            return json.dumps(header, sort_keys=True).encode()
    file.seek(0)
    return b""


def matches_old_record(path: Path, was: str, now: str, record: Mapping[str, Any], key: str) -> bool:
    """Whether a path has the content that an older run.json says: there `inputs` goes from path to fingerprint.

    Of a folder it knows a model's weights, and RULER's sources by the benchmark's own facts. A model or a table of
    which it says nothing is taken to be the same at the same path; data is not. was, now: the path then and today.
    """
    inputs: Mapping[str, str] = record.get("inputs", {})
    if path.is_file():
        files = {"": inputs[was]} if was in inputs else {}
    else:
        start = was.rstrip("/") + "/"
        files = {name.removeprefix(start): said for name, said in inputs.items() if name.startswith(start)}
        known = (record.get("benchmark") or {}).get(key.rpartition(".")[2])
        files = files or (known if isinstance(known, dict) else {})
    if not files:
        return was == now and not key.startswith(("benchmark.", "job."))
    places = {path / name if name else path: said for name, said in files.items()}
    return all(place.is_file() and fingerprint_as_before(place) == said for place, said in places.items())


def fingerprint_as_before(path: Path) -> str:
    """As older run.json files have it: larger files by size and time."""
    at = path.stat()
    return _read_as_before(path.resolve(), at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@lru_cache(maxsize=4096)
def _read_as_before(path: Path, *state: int) -> str:
    _, size, time, _ = state
    return f"{size} bytes, {time}" if size > LARGE else hashlib.sha256(path.read_bytes()).hexdigest()[:16]
