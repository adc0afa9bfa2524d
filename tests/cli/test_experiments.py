"""Every yaml of conf/experiment/ composes to runs with names of their own; the small ones run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from evals.run import cli
from evals.run.fingerprint import fingerprint
from evals.run.settings import Run
from lukv.conf import GROUPS, read_option
from tests.as_typed import ROOT, Command

EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_to_a_sweep(name: str) -> None:
    few = ["scorer=keydiff", "model=llama-3.1-8b-instruct"] if name.startswith("paper_") else []
    few = ["scorer=keydiff"] if name.endswith("atlas") else few
    budget = "budget_bytes=0.2" if name.endswith("_bytes") else "budget=0.2"
    planned = cli.plan([f"experiment={name}", budget, *few]).planned  # composing takes a moment for each run
    assert len(planned) > 3
    last = planned[-1]  # the command that repeats one run of the sweep asks for that run
    assert cli.plan(shlex.split(last.command)[2:]).planned == [replace(last, task=0)]  # alone, it is the first


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_tasks_are_chosen_where_they_show(name: str) -> None:
    """A choice of tasks above the sweep would not be in the runs' names."""
    written: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml"))
    assert "tasks" not in (written.get("benchmark") or {})
    assert written["hydra"]["sweeper"]["params"]


@cache
def plan_whole(name: str) -> list[cli.PlannedRun]:
    return cli.plan([f"experiment={name}"]).planned


@pytest.mark.slow  # composing 600 runs
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_takes_as_many_runs_as_it_says(name: str) -> None:
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    said = re.findall(
        r"(\d+) (?:runs|calibrations)", text[text.index("# Takes: ") : text.index("# Needs: ")].split(".")[0]
    )
    assert len(plan_whole(name)) == sum(map(int, said))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("atlas")])
def test_the_atlas_calibrates_the_scorers_that_it_runs(name: str) -> None:
    """The command in its header names them, and each exists; so do the allocators."""
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    asked = read_option("experiment", name)["hydra"]["sweeper"]["params"]
    (calibrated,) = re.findall(r"'job\.scorers=\[(.*)\]'", text)
    assert calibrated == asked["scorer"]
    for group in ("scorer", "allocator"):
        options = asked[group].split(",")
        assert len(set(options)) == len(options)
        assert set(options) <= set(GROUPS[group])


PARAMETERS = {"llama-3.1-8b-instruct": 8e9, "mistral-7b-instruct-v0.3": 7.2e9, "qwen2.5-32b-instruct": 32.8e9}
WIDTH = {"llama-3.1-8b-instruct": 32 * 4096, "mistral-7b-instruct-v0.3": 32 * 4096, "qwen2.5-32b-instruct": 64 * 5120}
"""Of a model: layers times hidden size."""


def hours(run: Run) -> float:
    """Of one run on an H100, as the headers say: prefill at 40% of 989e12 operations a second, 25 or 80 ms a step."""
    name = run["model"]["name"]
    ruler = "length" in run["benchmark"]
    samples = (500 if run["limit"] is None else run["limit"]) * 13 if ruler else 3750
    tokens = run["benchmark"]["length"] if ruler else 10_000
    # the longest answers that there may be, LongBench's with 20 tokens more
    mean_steps = (8 * 128 + 30 + 120 + 50 + 2 * 32) / 13 if ruler else 583_800 / 3750
    prefill = samples * tokens * (2 * PARAMETERS[name] + 2 * WIDTH[name] * tokens) / (0.4 * 989e12)
    step = 0.08 if "32b" in name else 0.025
    return (prefill + samples / (8 if ruler else 4) * mean_steps * step) / 3600


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper_ruler", "paper_longbench", "paper_budgets"])
def test_the_papers_grid_is_whole_and_its_hours_are_those_it_says(name: str) -> None:
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    takes = text[text.index("# Takes: ") : text.index("# Needs: ")].replace("\n#  ", "")
    stated = [(int(n), float(each)) for n, each in re.findall(r"(\d+) x ([\d.]+) \(", takes)]
    total = re.search(r"([\d.]+) +hours in all", takes)
    assert total is not None
    assert sum(n * each for n, each in stated) == float(total[1])
    groups: dict[tuple[bool, int], list[Run]] = {}
    for planned in plan_whole(name):
        run = planned.run
        assert run is not None
        key = "32b" in run["model"]["name"], run["benchmark"].get("length", 0)
        groups.setdefault(key, []).append(run)
    for (n, each), runs in zip(stated, (groups[key] for key in sorted(groups)), strict=True):
        models = {run["model"]["name"] for run in runs}
        assert n == len(runs) + len(models)  # and the full cache of each
        assert each / 2 <= max(map(hours, runs)) <= each * 1.05
        cells = {(run.choices["scorer"], run.choices["allocator"]) for run in runs}
        scorers = "snapkv", "keydiff", "expected_attention"
        allocators = "uniform", "pyramidkv", "adakv", "budget_table"
        assert cells == {(scorer, allocator) for scorer in scorers for allocator in allocators}
        assert {run["budget"] for run in runs} >= {0.1, 0.2}
        assert {run["protection"]["sink"] for run in runs if run["method"] == "lukv"} == {4}


SMALL = ["limit=1", "benchmark.tasks=[niah_single_1]", "benchmark.length=512", "calibration.benchmark.length=512"]


def test_protection(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("experiment=ablation_protection", "budget=0.2", "method=keydiff", *SMALL, f"runs={tmp_path}") == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    own, equal = (json.loads(p.read_text())["config"] for p in sorted(tmp_path.glob("*keydiff*/result.json")))
    assert (own["protection"], equal["protection"]) == ("equal", "own")


@pytest.mark.slow
def test_aggregation(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command: two tables are made, and each is used by the runs that are named after it."""
    few = ["budget=0.2", *SMALL, "calibration.benchmark.tasks=[niah_single_1]", "calibration.contexts=2"]
    assert command("experiment=ablation_aggregation", *few, f"runs={tmp_path}") == 0
    assert "4 runs: 4 done" in capsys.readouterr().out
    for kind in ("budgets", "losses"):
        table = tmp_path / "tables" / kind / "tiny" / "keydiff.safetensors"
        (run,) = (json.loads(p.read_text()) for p in tmp_path.glob(f"tiny__lukv*job.aggregation={kind}/run.json"))
        assert run["inputs"]["allocator.path"] == fingerprint(table)
    made = [p.read_bytes() for p in sorted(tmp_path.glob("tables/*/*/keydiff.safetensors"))]
    assert len(made) == 2
    assert made[0] != made[1]
