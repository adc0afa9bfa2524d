"""Reading data files of other people: what is wrong is reported by file and line."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

SURROGATE = re.compile("[\ud800-\udfff]")
INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")
NAMES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

TABLES = (".jsonl", ".json", ".parquet")
"""The files that `read_table` reads."""

Row = tuple[str, dict[str, Any]]
"""(where it stands, as "FILE line 3" or "FILE row 3", its columns)"""


def read_rows(path: str | Path, columns: Mapping[str, type]) -> list[dict[str, Any]]:
    """All rows of a jsonl file. `columns`: those that every row must have, with their types; others are kept.

    Raises FileNotFoundError or ValueError that names the file and the line: a file that is missing, empty, not UTF-8, a
    line that is not a JSON object, a column that is missing or of another type. Blank lines at the end are allowed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: a jsonl file is expected")
    lines = path.read_bytes().rstrip().split(b"\n")
    if lines == [b""]:
        raise ValueError(f"{path} is empty")
    return [parse(line, f"{path} line {number}", columns) for number, line in enumerate(lines, start=1)]


def read_member(archive: ZipFile, member: str, where: str, columns: Mapping[str, type]) -> list[Row]:
    """The rows of a jsonl file in a zip archive, which messages name `where`."""
    lines = archive.read(member).rstrip().split(b"\n")
    places = [f"{where} {member} line {number}" for number in range(1, len(lines) + 1)]
    return [(place, parse(line, place, columns)) for place, line in zip(places, lines, strict=True)]


def parse(line: bytes, place: str, columns: Mapping[str, type]) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        broken = b"\\u" in line and SURROGATE.search(json.dumps(row, ensure_ascii=False))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 (byte {error.start + 1}: {error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if broken:
        raise ValueError(f"{place} is not Unicode: it has half a surrogate pair, as \\ud800")
    return check_row(row, place, columns)


def check_row(row: Any, place: str, columns: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is {NAMES.get(type(row), type(row).__name__)}, a JSON object is expected")
    check_columns(row, place, columns)
    return row


def read_table(path: Path, columns: Mapping[str, type]) -> list[Row]:
    """All rows of a .jsonl, .json or .parquet file, in its order; a .json file is a list of objects, or one a line.

    columns   those that every row must have, with their types; others are kept

    Raises FileNotFoundError or ValueError that names the file and the line or row.
    """
    if path.suffix == ".parquet":
        return read_parquet(path, columns)
    if path.suffix not in TABLES:
        raise ValueError(f"{path}: {', '.join(TABLES)} files are read")
    if path.suffix == ".json" and path.is_file():
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"["):
            return read_list(path, columns)
    return [(f"{path} line {number}", row) for number, row in enumerate(read_rows(path, columns), start=1)]


def read_list(path: Path, columns: Mapping[str, type]) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start + 1}: {error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return [(place, check_row(row, place, columns)) for place, row in number_rows(path, rows)]


def read_parquet(path: Path, columns: Mapping[str, type]) -> list[Row]:
    import pyarrow.parquet  # heavy, and needed only here

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    return [(place, check_row(row, place, columns)) for place, row in number_rows(path, table.to_pylist())]


def number_rows(path: Path, rows: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"{path} row {number}", row) for number, row in enumerate(rows, start=1)]


def find_tables(folder: Path, name: str) -> list[Path]:
    """The files that one table is in: NAME.jsonl, NAME.json or NAME.parquet in the folder, or all those in its folder
    NAME. Raises ValueError where rows would count twice."""
    files = [file for suffix in TABLES if (file := folder / f"{name}{suffix}").is_file()]
    nested = data_files(folder / name, TABLES) if (folder / name).is_dir() else []
    if files and nested:
        raise ValueError(f"{files[0]} and {nested[0]} both hold {name}: samples would count twice; keep one")
    check_twins([*files, *nested])
    return [*files, *nested]


def data_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of these kinds (".jsonl") in a folder and its subfolders, sorted. Hidden files and folders are not data
    (.ipynb_checkpoints, the ._copies of a Mac)."""
    found = sorted(file for file in folder.rglob("*") if file.suffix in suffixes and file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def check_twins(files: Sequence[Path]) -> None:
    """Raises ValueError that names two files of which one is to go, because both would be read as one set of samples:
    the same name in two formats, or two splits (train.jsonl beside test.jsonl)."""
    names: dict[Path, Path] = {}
    splits: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(file.with_suffix(""), file)
        if other is not file:
            raise ValueError(f"{other} and {file} are one file in two formats: samples would count twice; keep one")
        if split := split_of(file):
            splits.setdefault(split, file)
    if len(splits) > 1:
        first, second, *_ = splits.values()
        raise ValueError(f"{first} and {second} are two splits of one data set: keep one, or name one file")


SPLIT = re.compile(r"(train|training|validation|valid|val|dev|test)(-\d+-of-\d+)?")


def split_of(file: Path) -> str:
    """The split that a file's name or its folder's states, as in the hub's data sets ("test-00000-of-00001"), or ""."""
    named = [match[1] for part in (file.stem, file.parent.name) if (match := SPLIT.fullmatch(part.lower()))]
    return named[0] if named else ""


def check_columns(row: Mapping[str, Any], place: str, columns: Mapping[str, type]) -> None:
    for name, kind in columns.items():
        if name not in row:
            has = " ".join(", ".join(sorted(row)).split())[:200]
            raise ValueError(f"{place} has no {name!r}; it has: {has or 'nothing'}")
        if type(row[name]) is not kind:
            found = NAMES.get(type(row[name]), type(row[name]).__name__)
            raise ValueError(f"{place}: {name!r} is {found}, expected {NAMES[kind]}")


def check_strings(values: Any, name: str, place: str) -> tuple[str, ...]:
    """The values of a list column, which must be strings, at least one."""
    strings = tuple(values) if isinstance(values, (list, tuple)) else ()
    if not strings or not all(isinstance(value, str) for value in strings):
        raise ValueError(f"{place}: {name!r} must be a list of strings, at least one")
    return strings


def check_references(values: Any, name: str, place: str) -> tuple[str, ...]:
    """The right answers of a question: strings, at least one, none of them blank. A blank one is part of every text."""
    references = check_strings(values, name, place)
    for reference in references:
        if is_blank(reference):
            raise ValueError(
                f"{place}: {name!r} holds an empty answer, {reference!r}: every prediction would contain it; "
                f"remove it, or write the word that is expected"
            )
    return references


def is_blank(text: str) -> bool:
    """Nothing to be seen: blanks, control and format characters (as the zero-width space) only.

    >>> is_blank("\t "), is_blank("-")
    (True, False)
    """
    return all(unicodedata.category(letter) in INVISIBLE for letter in text)
