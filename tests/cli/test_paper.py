"""docs/paper.md: its commands are commands, and its numbers add up."""

from __future__ import annotations

import re
import shlex
from statistics import mean

import pytest

from evals.run import cli
from evals.run.overrides import normalize_arguments
from tests.as_typed import ROOT

TEXT = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?:^|`)(python run\.py [^`\n]+)", TEXT, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_compose(command: str) -> None:
    """Of the sweeps one model and budget: composing takes a moment for each run."""
    arguments = shlex.split(command)[2:]
    if any(a.startswith("experiment=paper_") for a in arguments):
        fewer = {"model": "llama-3.1-8b-instruct", "budget": "0.2", "scorer": "keydiff", "method": "snapkv"}
        arguments += [f"{key}={value}" for key, value in fewer.items() if not any(a.startswith(key) for a in arguments)]
    planned = cli.plan(normalize_arguments(arguments)).planned
    assert planned
    assert all(each.run is not None for each in planned)


def test_the_result_files_mean_is_that_of_its_tasks() -> None:
    rows = re.findall(r"^\| (?:niah|vt|cwe|fwe|qa)\S*.*? \| ([\d., ]+) \|", TEXT, re.MULTILINE)
    tasks = [float(number) for row in rows for number in row.split(",")]
    (stated,) = re.findall(r"^\| mean of 13 \| ([\d.]+) \|", TEXT, re.MULTILINE)
    assert len(tasks) == 13
    assert round(mean(tasks), 2) == float(stated)
