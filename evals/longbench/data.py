"""LongBench's rows: the official jsonl files, from a folder or from the hub (data.zip; no data set script is run)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals import hub
from evals.longbench.score import parse_classes
from evals.rows import check_strings, is_blank, read_member, read_table

HUB = "THUDM/LongBench"
COLUMNS: Mapping[str, Any] = {"input": str, "context": str, "answers": list, "length": int}


class Data:
    """Rows of `NAME.jsonl` (or `NAME_e.jsonl`), columns checked, `answers` and `all_classes` as tuples of strings."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.folder = Path(source).expanduser()
        self.archive: zipfile.ZipFile | None = None
        if self.folder.is_dir():
            return
        if not hub.names_hub(source):
            raise FileNotFoundError(
                f"benchmark.data={source} is not a folder of LongBench's jsonl files (qasper.jsonl ...); they are in "
                f"data.zip of the data set {HUB} on the Hugging Face hub"
            )
        self.archive = zipfile.ZipFile(download(source))

    def has(self, name: str) -> bool:
        if self.archive is not None:
            return f"data/{name}.jsonl" in self.archive.namelist()
        return (self.folder / f"{name}.jsonl").is_file()

    def rows(self, name: str) -> list[dict[str, Any]]:
        if not self.has(name):
            raise FileNotFoundError(
                f"benchmark.data={self.source} has no {name}.jsonl; "
                f"get it from data.zip of {HUB}, or set benchmark.tasks=available"
            )
        if self.archive is None:
            rows = read_table(self.folder / f"{name}.jsonl", COLUMNS)
        else:
            rows = read_member(self.archive, f"data/{name}.jsonl", self.source, COLUMNS)
        for place, row in rows:
            row["answers"] = check_strings(row["answers"], "answers", place)
            if all(is_blank(answer) for answer in row["answers"]):
                raise ValueError(f"{place}: all its 'answers' are empty, so that no prediction can be right")
            row["all_classes"] = parse_classes(row.get("all_classes"), place)
        return [row for _, row in rows]


def download(name: str) -> Path:
    try:
        return hub.download(name, "data.zip")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"benchmark.data={name}: not a folder here, and {error}; "
            f"get data.zip of {HUB} where there is a network, unpack it and set benchmark.data=FOLDER"
        ) from error
