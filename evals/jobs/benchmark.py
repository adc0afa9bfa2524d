"""A run's benchmark as token ids, made once for all runs that share it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from evals.jobs.prompts import TokenizedSample, tokenize
from evals.run import build
from evals.run.instantiate import create
from evals.run.waiting import explain_wait


def tokenize_benchmark(
    model_settings: str, benchmark_settings: str, limit: int | None
) -> tuple[list[TokenizedSample], dict[str, Any]]:
    """All samples as token ids, and the benchmark's facts. Made once for the runs of a sweep that share them, and again
    where a data file has changed.

    The settings are JSON. Raises InputError for a sample that does not fit into the model.
    """
    return _tokenize(model_settings, benchmark_settings, limit, describe_files(json.loads(benchmark_settings)))


FileStates = tuple[tuple[str | int, ...], ...]


def describe_files(settings: Any) -> FileStates:
    """Path, inode, size and times of every file that the settings name, also in folders: it tells that one changed."""
    if isinstance(settings, (dict, list)):
        values = settings.values() if isinstance(settings, dict) else settings
        return tuple(state for value in values for state in describe_files(value))
    if not isinstance(settings, str) or "\0" in settings or len(settings) > 4096:
        return ()
    path = Path(settings).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in found)


@lru_cache(maxsize=1)
def _tokenize(
    model_settings: str, benchmark_settings: str, limit: int | None, files: FileStates
) -> tuple[list[TokenizedSample], dict[str, Any]]:
    model, benchmark = build.load_model(model_settings), create(json.loads(benchmark_settings))
    with explain_wait(f"making and tokenizing the samples of {benchmark.name}"):
        return tokenize(model, benchmark, limit)
