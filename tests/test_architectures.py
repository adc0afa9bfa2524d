"""docs/architectures.md: what the backend makes of every causal language model of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from scripts.architectures import DATA, PAGE, list_types, make_data, make_page, read_data, try_type

ROWS = {row.type: row for row in read_data()}
SAME_VERSION = pytest.mark.skipif(
    next(iter(ROWS.values())).version != transformers.__version__, reason="the table is of another transformers"
)
FEW = ("llama", "gemma3_text", "gpt2", "qwen3_moe", "bloom", "deepseek_v3", "jamba", "gpt_oss", "roberta", "bart")


def compare(kind: str) -> None:
    found = try_type(kind)
    assert replace(found, difference="") == replace(ROWS[kind], difference="")  # its last digits are a machine's own


def test_the_page_is_what_the_data_say():
    assert PAGE.read_text(encoding="utf-8") == make_page(list(ROWS.values()))
    assert DATA.read_text(encoding="utf-8") == make_data(list(ROWS.values()))


def test_nothing_is_silently_wrong():
    for row in ROWS.values():
        assert row.verdict in ("exact", "exact, but", "refused", "not tried"), row
        assert (row.why != "") == (row.verdict != "exact"), row
        assert row.by in {"refused": ("config", "check")}.get(row.verdict, ("",)), row
        assert not row.verdict.startswith("exact") or float(row.difference) <= 1e-6, row


@SAME_VERSION
@pytest.mark.parametrize("kind", FEW)
def test_a_few_types(kind):
    compare(kind)


@SAME_VERSION
def test_every_type_is_in_the_table():
    assert list(ROWS) == list_types()


@SAME_VERSION
@pytest.mark.slow
def test_all_types():
    for kind in list_types():
        compare(kind)
