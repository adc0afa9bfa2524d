"""Fuzzing: a few cases a target in every test run, LUKV_FUZZ (100 000) in `make test-faults`."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from evals.run import cli
from tests.faults.fuzz import SECONDS, TARGETS, assigned

CASES = int(os.environ.get("LUKV_FUZZ", "100000"))


def explore(name: str, cases: int) -> tuple[int, float]:
    """Run a target; -> cases, the longest of them in seconds of this process."""
    target, seen, longest = TARGETS[name], 0, 0.0

    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.draw)
    def run(case: Any) -> None:
        nonlocal seen, longest
        seen += 1
        begin = time.process_time()
        target.check(case)
        longest = max(longest, time.process_time() - begin)
        assert longest < SECONDS

    run()
    return seen, longest


@pytest.mark.parametrize("name", TARGETS)
def test_a_few(name: str) -> None:
    seen, _ = explore(name, 10 if name == "metrics, very long" else 60)
    assert seen >= 10


done: dict[str, int] = {}


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_many(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.process_time()
    share = TARGETS[name].share / sum(target.share for target in TARGETS.values())
    done[name], longest = explore(name, int(1.01 * CASES * share) + 1)
    with capsys.disabled():
        print(f"\n{done[name]:7} {name}: {time.process_time() - begin:.0f} s, longest {longest:.2f} s")


@pytest.mark.faults
def test_they_were_many(capsys: pytest.CaptureFixture[str]) -> None:
    if set(done) != set(TARGETS):
        pytest.skip("not all targets in this process")
    with capsys.disabled():
        print(f"\n{sum(done.values()):7} cases in all")
    assert sum(done.values()) >= CASES


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_whole_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Through run.py's own planning: composed, or exit code 2 and one line."""

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(assigned)
    def run(text: str) -> None:
        capsys.readouterr()
        code: Any = 0
        try:
            cli.plan(["method=snapkv", text])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert out == ""
        assert (code, err.count("\n"), err[:8]) in ((0, 0, ""), (2, 1, "run.py: ")), (text, err)

    run()
