"""Every yaml of conf/experiment/ composes to runs with names of their own; the small ones run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from evals.run import cli
from evals.run.fingerprint import fingerprint
from tests.as_typed import ROOT, Command

EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_composes_to_a_sweep(name: str) -> None:
    planned = cli.plan([f"experiment={name}", "budget=0.2"]).planned  # composing takes a moment for each run
    assert len(planned) > 3
    last = planned[-1]  # the command that repeats one run of the sweep asks for that run
    assert cli.plan(shlex.split(last.command)[2:]).planned == [last]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_tasks_are_chosen_where_they_show(name: str) -> None:
    """A choice of tasks above the sweep would not be in the runs' names."""
    written: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml"))
    assert "tasks" not in (written.get("benchmark") or {})
    assert written["hydra"]["sweeper"]["params"]


@pytest.mark.slow  # composing 300 runs
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_takes_as_many_runs_as_it_says(name: str) -> None:
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    said = re.findall(
        r"(\d+) (?:runs|calibrations)", text[text.index("# Takes: ") : text.index("# Needs: ")].split(".")[0]
    )
    assert len(cli.plan([f"experiment={name}"]).planned) == sum(map(int, said))


SMALL = ["limit=1", "benchmark.tasks=[niah_single_1]", "benchmark.length=512", "calibration.benchmark.length=512"]


def test_protection(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("experiment=ablation_protection", "budget=0.2", "method=keydiff", *SMALL, f"runs={tmp_path}") == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    own, equal = (json.loads(p.read_text())["config"] for p in sorted(tmp_path.glob("*keydiff*/result.json")))
    assert (own["protection"], equal["protection"]) == ("equal", "own")


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
