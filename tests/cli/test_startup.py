"""What a command costs before its work: each run composed once, and no torch for what is finished."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path

import pytest

from evals.run import cli
from tests.as_typed import Command, process

MODEL_LIBRARIES = {"torch", "transformers", "datasets", "safetensors", "tokenizers", "scipy", "matplotlib"}

JOBS = {
    "evaluate": ["method=snapkv"],
    "a sweep": ["-m", "method=snapkv,full", "budget=0.2,0.4", "verbose=true"],
    "latency": ["method=keydiff", "job=latency", "job.lengths=[64]", "job.repeats=1", "job.new_tokens=2"],
    "calibrate": [
        *("job=calibrate", "scorer=keydiff", "job.save=true", "job.oracle.horizon=2", "calibration.contexts=1"),
        *("calibration.benchmark.length=1200", "calibration.benchmark.tasks=[niah_single_1]"),
    ],
}


@pytest.fixture
def small(settings: list[str], tmp_path: Path) -> list[str]:
    return [*settings, f"model.tables={tmp_path}/tables"]


def compositions(command: Command, *args: str) -> int:
    """How many configs Hydra composes, for whomever, during the command: the interpreter's own profile says it."""
    profile = cProfile.Profile()
    assert profile.runcall(command, *args) == 0
    calls = {code[2]: count for code, (_, count, *_) in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    return calls["load_configuration"]


def imported(*args: str) -> tuple[str, set[str]]:
    """What the command prints, and the packages that it imports."""
    done = process("importtime", "run.py", *args, program="-X")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.stdout, {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines}


def unsaid(text: str) -> list[str]:
    """The lines but for those that say that a run was done before."""
    return [line for line in text.splitlines() if not line.endswith(": already done")]


@pytest.mark.parametrize("job", JOBS)
def test_what_is_finished_needs_no_torch(
    job: str, command: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what it printed when it was done, but for the word that it is."""
    args = [*JOBS[job], *small]
    assert command(*args) == 0
    first = capsys.readouterr().out
    for table in tmp_path.glob("tables/*"):
        table.unlink()
    said, packages = imported(*args)
    assert {"hydra", "evals"} <= packages
    assert not packages & MODEL_LIBRARIES
    assert "already done" in said
    expected = first.replace("  done  ", "  skipped  ").replace("3 done, 0 skipped", "0 done, 3 skipped")
    assert unsaid(said) == unsaid(expected)
    assert len(list(tmp_path.glob("tables/*"))) == (3 if job == "calibrate" else 0)  # table, curve, thresholds


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("model=hf:/nowhere", "model /nowhere: there is no such folder"),
        ("attention=flsh", "attention=flsh is not a kernel"),
        ("model.dtype=float99", "dtype=float99 is not known"),
        ("model.device=cud", "device=cud is not known"),
    ],
)
def test_a_refusal_that_needs_no_torch_imports_none(wrong: str, said: str, tmp_path: Path) -> None:
    done = process("importtime", "run.py", wrong, "method=snapkv", f"runs={tmp_path}", program="-X")
    lines = done.stderr.splitlines()
    words = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(words) == 1
    assert said in words[0]
    assert not MODEL_LIBRARIES & {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines}


def test_what_is_not_finished_does(small: list[str]) -> None:
    """So that the test above can fail."""
    said, packages = imported(*small, "method=full", "limit=1", "benchmark.tasks=[niah_single_1]")
    assert "already done" not in said
    assert {"torch", "transformers"} <= packages


def test_each_run_is_composed_once(command: Command, small: list[str]) -> None:
    """A sweep composes what its runs have in common, too."""
    small = [*small, "limit=1", "benchmark.tasks=[niah_single_1]"]
    assert compositions(command, *small, "method=snapkv") == 1
    assert compositions(command, "-m", *small, "method=snapkv,keydiff", "budget=0.2,0.4") == 1 + 4


def test_a_sweep_that_asks_for_the_same_run_twice_does_it_once(
    command: Command, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", *small, "method=full", "budget=0.2,0.4") == 0
    out = capsys.readouterr().out
    assert out.count("mean of tasks") == 1
    assert "already done" not in out


LAUNCHED_BY_HYDRA = [
    ["cluster=slurm"],
    ["+hydra.job.env_set.LUKV=1"],
    ["+hydra.callbacks.mine._target_=hydra.experimental.callbacks.LogJobReturnCallback"],
    ["--config-name=config"],
]


@pytest.mark.parametrize("args", LAUNCHED_BY_HYDRA, ids=" ".join)
def test_what_hydra_is_asked_to_do_it_does(args: list[str]) -> None:
    asked = cli.plan([*args, "method=snapkv"])
    assert not asked.in_process
    plain = cli.plan(["method=snapkv"])
    assert plain.in_process
    assert [p.run for p in plain.planned] == [p.run for p in asked.planned]


def test_through_hydra(command: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run, launched by Hydra for a setting of its own."""
    assert command(*small, "method=snapkv") == 0
    (name,) = (p.name for p in tmp_path.glob("*snapkv*"))
    capsys.readouterr()
    assert command(*small, "method=snapkv", "hydra.verbose=false") == 0
    assert f"{name}: already done" in capsys.readouterr().out
