"""docs/benchmarks-of-your-own.md does what it says: its files are written and its command runs in a folder beside."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.as_typed import ROOT

TEXT = (ROOT / "docs" / "benchmarks-of-your-own.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = dict(re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", TEXT, re.S))
    assert set(files) == {"mine/recall.py", "conf/benchmark/recall.yaml"}
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def type_in(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The page's command as it is typed there, with other settings after it."""
    (line,) = re.findall(r"^    PYTHONPATH=\. python /path/to/run\.py (.*)$", TEXT, re.M)
    typed = [sys.executable, str(ROOT / "run.py"), *shlex.split(line), *more, "runs=runs"]
    environment = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    return subprocess.run(typed, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_benchmark_in_a_folder_of_ones_own(folder: Path) -> None:
    done = type_in(folder, "limit=2")
    assert done.returncode == 0, done.stderr
    assert "\nrecall " in done.stdout
    (run,) = folder.glob("runs/tiny__keydiff__*/")
    assert run.name == "tiny__keydiff__b0.2__recall-40__n2__s0"
    result = json.loads((run / "result.json").read_text())
    assert (result["benchmark"], result["tasks"]["recall"]["n"]) == ("recall-40", 2)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert all(set(line["scores"]) == {"found"} and line["references"][0].isdigit() for line in samples)


def test_what_its_class_refuses_is_one_line(folder: Path) -> None:
    done = type_in(folder, "benchmark.things=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run.py: benchmark.things=0 must be at least 1\n"
    assert not (folder / "runs").exists()
