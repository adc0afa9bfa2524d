"""Caches in few bits and budgets in bytes on the command line: what is recorded is what is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.report.data import collect, read_data, write_data
from evals.report.runs import budget_label, group_by_experiment, keeps_all, label, read_results
from evals.run.records import Evaluation, SampleRecord
from lukv.conf import read_option
from scripts.doc_tables import Table
from tests.as_typed import Command
from tests.cli.test_records import list_faults


def test_a_sweep_over_bytes(
    command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three ways to store, two shares of bytes, and the whole cache: one prefill, one table, real bytes."""
    swept = ["method=full,keydiff", "cache_dtype=auto,int8", "budget_bytes=0.1,0.2"]
    assert command("-m", *settings, *swept) == 0
    out = capsys.readouterr().out
    assert "10% of bytes" in out
    assert "full int8" in out
    folders = sorted(path.parent for path in tmp_path.glob("*/result.json"))
    assert len(folders) == 6
    [group] = group_by_experiment(read_results(tmp_path)).values()
    assert {(label(r), budget_label(r)) for r in group} == {
        ("full", "all"), ("full int8", "1"),
        *((name, share) for name in ("keydiff", "keydiff int8") for share in ("0.1 bytes", "0.2 bytes")),
    }  # fmt: skip
    assert [label(r) for r in group if keeps_all(r)] == ["full"]
    entries = {}
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        assert list_faults(result, Evaluation) == []
        share = result["config"]["budget_bytes"]
        for line in read_lines(folder):
            assert list_faults(line, SampleRecord) == []
            if share is not None:
                assert 0.98 * share < line["cache_bytes"] / line["full_cache_bytes"] <= share
                entries[result["config"]["cache_dtype"], share, line["id"]] = line["kept_share"]
    assert all(kept > entries["auto", share, i] for (dtype, share, i), kept in entries.items() if dtype == "int8")
    cells = collect(tmp_path)
    file = tmp_path / "cells.csv"
    write_data(file, cells)
    assert [round(c.bytes or 0, 4) for c in read_data(file)] == [round(c.bytes or 0, 4) for c in cells]
    rows = ["keydiff", "keydiff int8"]
    table = Table("x", rows, {}, budgets=["0.1 bytes", "0.2 bytes"]).markdown(cells)
    assert "| method | 10% of bytes | 20% of bytes |" in table


@pytest.mark.parametrize("decoding", [[], ["decoding=size", "decoding.tokens=60", "decoding.every=8"]])
def test_decoded_together_and_alone_are_the_same(
    command: Command, settings: list[str], decoding: list[str], tmp_path: Path
) -> None:
    """In a sweep a prefill serves caches of each dtype; alone a cache is packed layer by layer. The same where it is
    evicted again while answering."""
    swept, alone = f"runs={tmp_path / 'swept'}", f"runs={tmp_path / 'alone'}"
    common = [*settings, *decoding, "budget=0.3"]
    assert command("-m", *common, "method=keydiff,snapkv", "cache_dtype=auto,int4", swept) == 0
    assert command(*common, "method=keydiff", "cache_dtype=int4", "share_prefill=false", alone) == 0
    [folder] = (tmp_path / "alone").glob("*keydiff*")
    assert "__int4__" in folder.name
    kept = [
        [(s["id"], s["prediction"], s["cache_bytes"], s.get("while_answering")) for s in read_lines(f)]
        for f in (folder, tmp_path / "swept" / folder.name)
    ]
    assert sorted(kept[0], key=str) == sorted(kept[1], key=str)
    assert all((again is not None) == bool(decoding) for *_, again in kept[0])


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_what_cannot_be_met_is_one_line(
    command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*settings, "method=keydiff", "cache_dtype=int8", "budget_bytes=0.9") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "budget_bytes=0.9 cannot be met" in error
    assert "or budget=1" in error
    assert not list(tmp_path.glob("*/samples.jsonl"))


def test_the_experiment_is_of_shares_that_every_dtype_meets() -> None:
    asked = read_option("experiment", "embedded_bytes")["hydra"]["sweeper"]["params"]
    assert max(map(float, asked["budget_bytes"].split(","))) < 0.3  # int4: 40 of 128 bytes
    assert asked["cache_dtype"] == "auto,int8,int4"
