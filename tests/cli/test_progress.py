"""Progress at 80 and at 50 columns, and in a pipe."""

from __future__ import annotations

import io
import threading

import pytest

from evals.jobs.progress import Progress
from evals.run.waiting import explain_wait
from tests.as_typed import Command


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_one_line_of_50_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, *(7000.0 * i for i in range(1, 14))])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    stream = Terminal()
    progress = Progress("a name " * 30, 13000, stream=stream)
    for done in range(0, 13001, 1000):
        progress.reach(done)
    progress.close()
    head, total, lines = stream.getvalue().split("\n", 2)
    assert (head, total) == ("a name " * 30, "13000 samples")
    shown = lines.rstrip("\n").split("\r\x1b[K")[1:]
    assert (lines.count("\n"), len(shown)) == (1, 13)
    assert max(map(len, shown)) <= 50
    assert shown[0] == "1000/13000 samples, 1.9 h, about 23.3 h left"


def test_in_a_pipe_it_is_a_plain_line_every_tenth() -> None:
    stream = io.StringIO()
    progress = Progress("name", 200, "contexts", stream)
    for done in range(100, 201):
        progress.reach(done)
    progress.close()
    head, total, *lines = stream.getvalue().splitlines()
    assert (head, total) == ("name", "200 contexts, 100 of them done before")
    assert [line.split(",")[0] for line in lines] == [f"{n}/200 contexts" for n in (120, 140, 160, 180, 200)]
    assert "\r" not in stream.getvalue()


def test_latency_says_how_far_it_is(command: Command, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["job=latency", "method=keydiff", "job.lengths=[64,80]", "job.repeats=1", "job.new_tokens=2"]
    assert command(*args, *(s for s in settings if not s.startswith(("benchmark", "limit")))) == 0
    said = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if " rounds" in line]
    assert said == ["4 rounds", *(f"{n}/4 rounds" for n in range(1, 5))]


def test_what_is_slow_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and only then."""
    said = threading.Event()

    class Heard(io.StringIO):
        def flush(self) -> None:
            said.set()

    stream = Heard()
    monkeypatch.setattr("sys.stderr", stream)
    with explain_wait("reading the weights", patience_s=0):
        assert said.wait(60)
    with explain_wait("something quick", patience_s=600):
        pass
    assert stream.getvalue() == "reading the weights ...\n"


def test_calibrate_says_how_far_it_is(
    command: Command, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [s for s in settings if not s.startswith(("benchmark", "limit"))]
    small = ["calibration.benchmark.length=1200", "calibration.benchmark.tasks=[niah_single_1]", "job.oracle.horizon=2"]
    assert command("job=calibrate", "scorer=keydiff", "calibration.contexts=2", *kept, *small) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" ...")]
    assert said[0].endswith(": measure")
    assert said[1:2] == ["2 contexts"]
    assert [line.split(",")[0] for line in said[2:]] == ["1/2 contexts", "2/2 contexts"]
