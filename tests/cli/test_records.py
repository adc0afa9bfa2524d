"""What a run writes is what evals/run/records.py says: the files of a new run, and of runs of an older version."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from evals.run.records import Calibration, Evaluation, FailedSample, Latency, RunRecord, SampleRecord
from tests.as_typed import Command

OLD = Path(__file__).parent / "old_runs"


def list_faults(value: Any, kind: Any, where: str = "") -> list[str]:
    """Where a JSON value is not of a type."""
    if is_typeddict(kind):
        if not isinstance(value, Mapping):
            return [f"{where} is no object"]
        hints = get_type_hints(kind)
        keys = [f"{where}.{k} is missing" for k in sorted(kind.__required_keys__ - value.keys())]
        keys += [f"{where}.{k} is unknown" for k in sorted(value.keys() - hints.keys())]
        return keys + [f for k in value if k in hints for f in list_faults(value[k], hints[k], f"{where}.{k}")]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [] if any(not list_faults(value, each) for each in arguments) else [f"{where} is not {kind}"]
    if origin is Literal:
        return [] if value in arguments else [f"{where} is not {kind}"]
    if origin is list:
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [f for i, item in enumerate(value) for f in list_faults(item, arguments[0], f"{where}[{i}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        return [f for k, item in value.items() for f in list_faults(item, arguments[1], f"{where}.{k}")]
    allowed = (int, float) if kind is float else kind
    right = kind is Any or (isinstance(value, allowed) and (kind is bool or type(value) is not bool))
    return [] if right else [f"{where} is {value!r}, not {kind}"]


def check_folder(folder: Path, result: Any) -> None:
    assert list_faults(json.loads((folder / "run.json").read_text()), RunRecord) == []
    assert list_faults(json.loads((folder / "result.json").read_text()), result) == []
    samples = folder / "samples.jsonl"
    for line in samples.read_text().splitlines() if samples.exists() else ():
        assert list_faults(json.loads(line), SampleRecord) == []


@pytest.mark.parametrize(
    ("kind", "result"), [("evaluate", Evaluation), ("latency", Latency), ("calibrate", Calibration)]
)
def test_older_files(kind: str, result: Any) -> None:
    check_folder(OLD / kind, result)


def test_new_files(command: Command, settings: list[str], tmp_path: Path) -> None:
    assert command(*settings, "method=snapkv", "limit=1") == 0
    folders = [path.parent for path in tmp_path.glob("*/result.json")]
    assert len(folders) == 2
    for folder in folders:
        check_folder(folder, Evaluation)


def test_faults_are_found() -> None:
    good: FailedSample = {"id": "a", "task": "vt", "error": "out of memory"}
    assert list_faults(good, FailedSample) == []
    assert list_faults({**good, "id": 3, "more": 1}, FailedSample) == [
        ".more is unknown",
        ".id is 3, not <class 'str'>",
    ]
    assert list_faults({"id": "a"}, FailedSample) == [".error is missing", ".task is missing"]
    assert list_faults([[1, 2.5], [True]], list[list[int]]) == [
        "[0][1] is 2.5, not <class 'int'>",
        "[1][0] is True, not <class 'int'>",
    ]
