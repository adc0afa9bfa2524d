"""README.md: its listing is what the program prints, and it leads to every page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from evals.ruler import Ruler
from evals.run import cli
from evals.text import percent, result_table
from lukv.conf import GROUPS
from tests.as_typed import ROOT

README = (ROOT / "README.md").read_text()
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "runs/*.md", "models/*/*.md", "tests/*/*.md")
    for path in ROOT.glob(pattern)
)


def read_listing() -> str:
    (block,) = re.findall(r"What it prints, before the times:\n\n```text\n(.*?)```", README, re.S)
    return str(block)


def as_result(rows: list[list[str]], score: int, left_out: list[str]) -> dict[str, Any]:
    """A result whose tasks have the scores of this column. Intervals and counts are those of the listing."""
    found = {}
    for row in rows:
        ends = [float(end) / 100 for end in row[2].split("..")]
        found[row[0]] = {"score": float(row[score]) / 100, "ci95": ends, "n": int(row[3])}
    mean = found.pop("mean of tasks")
    times = {"prefill_s": 1.0, "ttft_s": 1.0, "tpot_s": 0.01, "batch": 8, "shared": 1}
    return {"tasks": found, **mean, "left_out": left_out, "time": times}


def test_its_listing_is_what_the_program_prints() -> None:
    """Its scores go through the program's own table; the tasks and those left out are RULER's own answer."""
    lines = read_listing().splitlines()
    rows = [re.split(r"  +", line) for line in lines if re.match(r"[\w ]+ +\d+\.\d  ", line)]
    ruler = Ruler(length=1024)
    tasks = [task.name for task in ruler.tasks(Words(), 1)]
    assert [row[0] for row in rows] == [*tasks, "mean of tasks"]
    assert rows[-1][1] == percent(sum(float(row[1]) for row in rows[:-1]) / len(tasks) / 100)
    assert int(rows[-1][3]) == sum(int(row[3]) for row in rows[:-1])
    left_out = sorted(ruler.facts()["left_out"])
    common = {"cache_bytes": 640.13 * 1024, "full_cache_bytes": 3.13 * 2**20, "kept_share": 0.2}
    mine, full = as_result(rows, 1, left_out), as_result(rows, 4, left_out)
    mine |= {"method": "lukv", "budget": common}
    full |= {"method": "full", "budget": {**common, "cache_bytes": common["full_cache_bytes"], "kept_share": 1.0}}
    [planned] = cli.plan(["method=lukv", "budget=0.2", "limit=50"]).planned
    shown = result_table({**mine, "run_id": planned.run.id}, full).splitlines()
    assert [line.rstrip() for line in shown[1 : len(lines) + 1]] == lines


class Words:
    """A tokenizer of words, so that every task fits."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(range(len(text.split())))

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        raise NotImplementedError


def test_it_leads_to_every_page_with_a_line_each() -> None:
    (table,) = re.findall(r"## Read on\n\n\| \| in this order \|\n\|---\|---\|\n(.*?)\n\n", README, re.S)
    linked = re.findall(r"\]\(([^)]+)\)", table)
    assert len(linked) == len(set(linked))
    assert {page for page in PAGES if page.startswith("docs/")} <= set(linked)
    assert all(row.split("|")[2].strip() for row in table.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"\w+:", target)]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("benchmark", sorted(GROUPS["benchmark"]))
def test_every_benchmark_is_in_the_list(benchmark: str) -> None:
    assert f"`{benchmark}`" in (ROOT / "docs/benchmarks-list.md").read_text()
