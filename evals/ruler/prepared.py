"""RULER samples somebody else has made, in the layout of the hub's simonjegou/ruler (kvpress's data)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals import hub
from evals.rows import Row, check_references, check_twins, data_files, read_table
from evals.task import Sample

COLUMNS: Mapping[str, Any] = {
    "context": str,
    "question": str,
    "answer_prefix": str,
    "answer": list,
    "task": str,
    "max_new_tokens": int,
}


def load(source: str, length: int) -> dict[str, list[Sample]]:
    """Samples by task, in file order.

    source   a .jsonl or .parquet file; a folder with such files, or with subfolders of them named after lengths; or
             the name of a data set of the hub whose configurations are lengths
    """
    path = Path(source).expanduser()
    if path.exists():
        rows = [row for file in files(path, length) for row in read_table(file, COLUMNS)]
    elif path.suffix or not hub.names_hub(source):
        raise FileNotFoundError(
            f"benchmark.prepared={source} is missing: a .jsonl or .parquet file or a folder of them"
        )
    else:
        rows = from_hub(source, length)
    samples: dict[str, list[Sample]] = {}
    places: dict[tuple[str, ...], str] = {}
    for place, row in rows:
        check_copy(row, place, places)
        same = samples.setdefault(row["task"], [])
        same.append(
            Sample(
                id=f"{row['task']}-{len(same)}",
                task=row["task"],
                context=row["context"],
                question=row["question"],
                answer_prefix=row["answer_prefix"],
                references=check_references(row["answer"], "answer", place),
                max_new_tokens=row["max_new_tokens"],
            )
        )
    return samples


def check_copy(row: Mapping[str, Any], place: str, places: dict[tuple[str, ...], str]) -> None:
    """ValueError if another file has this sample too: one of the files is a copy, under whatever name."""
    sample = tuple(str(row[name]) for name in ("task", "context", "question", "answer_prefix"))
    other = places.setdefault(sample, place)
    if file_of(other) != file_of(place):
        raise ValueError(f"{place} is the same sample as {other}: samples would count twice; keep one of the files")


def file_of(place: str) -> str:
    """The file of "FILE line 3" or "FILE row 3"."""
    return place.rsplit(" ", 2)[0]


def files(path: Path, length: int) -> list[Path]:
    if path.is_file():
        return [path]
    found = data_files(path, (".jsonl", ".parquet"))
    if not found:
        raise FileNotFoundError(f"no .jsonl or .parquet file under {path} (benchmark.prepared)")
    lengths = {part for file in found for part in file.relative_to(path).parts[:-1] if part.isdecimal()}
    if lengths and str(length) not in lengths:
        there = ", ".join(sorted(lengths, key=int))
        raise FileNotFoundError(f"benchmark.prepared={path} has samples of length {there}, not {length}")
    chosen = [file for file in found if not lengths or str(length) in file.relative_to(path).parts]
    check_twins(chosen)
    return chosen


def from_hub(name: str, length: int) -> list[Row]:
    try:
        return hub.load_split(name, str(length), "test", COLUMNS)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"benchmark.prepared={name}, length {length}: not a path here, and {error}") from error
