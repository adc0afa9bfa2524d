"""What a machine does to a run: no permission, a full disk, no network, no W&B, not enough memory, damaged records."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.snapkv import SnapKV
from lukv.scoring import PromptLayer
from tests.as_typed import ROOT, Command, process
from tests.faults.conftest import Refuses, jsonl, lines, only, question


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(small_disk: Path) -> Path:
    """The same, read-only: root may write wherever only the permissions forbid it."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


def test_no_write_permission(refuses: Refuses, short: list[str], read_only: Path) -> None:
    line = refuses(1, "Read-only file system", *short, f"runs={read_only}/runs", "method=snapkv")
    assert str(read_only) in line


def test_a_finished_run_on_a_read_only_disk(
    command: Command, short: list[str], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*short, f"runs={small_disk}", "method=snapkv", "limit=1", "reference=full"]
    assert command(*args) == 0
    shown = capsys.readouterr().out
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert command(*args) == 0
    said = capsys.readouterr()
    assert "already done" in said.out
    assert shown in said.out
    assert said.err == ""


def test_a_file_system_without_locks(
    refuses: Refuses, command: Command, short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """One line with the path and what to do, nothing is left behind, and what is finished stays readable."""
    done = [*short, "method=snapkv", "limit=1"]
    assert command(*done, f"runs={tmp_path}/finished") == 0
    (tmp_path / "finished").rename(tmp_path.parent / "finished")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    line = refuses(1, "this file system has no locks (No locks available)", *done, f"runs={tmp_path}/deep/er")
    assert str(tmp_path / "deep" / "er") in line
    assert "runs=FOLDER" in line
    assert not (tmp_path / "deep").exists()
    assert command(*done, f"runs={tmp_path.parent}/finished") == 0
    assert "already done" in capsys.readouterr().out
    shutil.rmtree(tmp_path.parent / "finished")


def test_what_is_refused_leaves_no_folder(refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    refuses(2, "no budget table at", *short, "method=lukv", f"runs={tmp_path}/new/runs")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_from_any_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the project names is the project's, what the user names is theirs; a refusal leaves nothing."""
    from evals.run import cli
    from lukv.conf import GROUPS, read_option

    for name in GROUPS["model"]:
        assert read_option("model", name)["tables"].startswith("${shipped:"), name
    monkeypatch.chdir(tmp_path)
    (planned,) = cli.plan(["model=hf", "model.path=theirs"]).planned
    assert planned.run.folder.parent == ROOT / "runs"
    assert planned.run["model"]["tables"] == str(ROOT / "tables" / "theirs")
    (planned,) = cli.plan(["model=hf", "model.path=theirs", "runs=mine", "model.tables=mine"]).planned
    assert (planned.run.folder.parent, planned.run["model"]["tables"]) == (Path("mine"), "mine")
    (tmp_path / "theirs").symlink_to(model)
    said = [sys.executable, str(ROOT / "run.py"), "model=hf", "model.path=theirs", "runs=mine/runs"]
    done = subprocess.run(said, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"no budget table at {ROOT}/tables/theirs/keydiff.safetensors" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_folder_called_as_a_model_of_conf_is_named_as_it_was(refuses: Refuses, model: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").symlink_to(model)
    line = refuses(2, "no budget table at", "model=hf", f"model.path={tmp_path / 'tiny'}", "method=lukv")
    assert f"`python run.py job=calibrate model=hf model.path={tmp_path / 'tiny'} scorer=keydiff" in line


def test_a_model_without_tables(refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    """What works at once, and the command that makes the table. That the model is not there is said first."""
    line = refuses(2, "no budget table at", *short, "method=lukv", "scorer=snapkv")
    assert "`python run.py job=calibrate model=hf model.name=random model.path=" in line
    ready = line.partition(". Without one: method=")[2].split(", ")
    assert ready[0] == "snapkv"  # the one of the scorer that was asked for
    assert "or adakv" in ready
    assert "lukv" not in line.partition("Without one")[2]
    for job in ("evaluate", "latency", "calibrate"):
        refuses(2, "nowhere: there is no such folder", *short, "method=lukv", f"job={job}", "model.path=./nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_who_leaves(buffered: str, short: list[str], tmp_path: Path) -> None:
    """`run.py | head`, `report.py | head`: every file is written, nothing is said of it."""
    programs = [["run.py", "-m", *short, "method=snapkv,keydiff", "limit=1"], ["report.py", f"--runs={tmp_path}/runs"]]
    for program in programs:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, *program],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
            check=False,
        )
        os.close(writer)
        assert done.returncode == 0, done.stderr
        assert "roken" not in done.stderr
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2
    assert {"report.md", "scores.csv", "leaderboard.html"} <= {p.name for p in (tmp_path / "runs/report").iterdir()}


def test_runs_is_a_file(refuses: Refuses, short: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuses(1, f"{tmp_path}/file", *short, f"runs={tmp_path}/file", "method=snapkv")


def test_a_table_cannot_be_saved(
    command: Command, short: list[str], read_only: Path, tmp_path: Path, capsys: Any
) -> None:
    """The calibration is not lost: its table stays in the run folder, and the same command only saves it."""
    args = [
        *(s for s in short if not s.startswith(("benchmark", "reference"))),
        *("job=calibrate", "job.save=true", "calibration.benchmark.length=1200", "calibration.contexts=1"),
        *("calibration.benchmark.tasks=[niah_single_1]", "job.oracle.horizon=2", "scorer=keydiff"),
    ]
    args.append(f"model.tables={read_only}/tables")
    assert command(*args) == 1
    assert "Read-only file system" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,rw", str(read_only)], check=True)
    assert command(*args) == 0
    assert "already done" in capsys.readouterr().out
    assert (read_only / "tables" / "keydiff.safetensors").exists()


def test_the_disk_is_full_in_the_middle_of_a_run(
    command: Command, short: list[str], small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole lines stay, the reason is one line; with room again the run ends as if nothing had happened."""
    long = [{**question(i), "answers": ["w" * 3000]} for i in range(6)]
    jsonl(tmp_path / "questions.jsonl", long)
    args = [*short, "method=snapkv", "batch_size=1"]
    assert command(*args) == 0
    finished = only(tmp_path / "runs")
    whole = lines(finished)
    limited = [*args, f"runs={small_disk}"]
    pages = {path.name: -(-path.stat().st_size // 4096) for path in finished.iterdir()}
    assert pages["samples.jsonl"] >= 4
    room = 3 + pages["config.yaml"] + pages["run.json"] + pages["samples.jsonl"] // 2  # 3: the lock, a draft, one spare
    (small_disk / "ballast").write_bytes(b"\0" * 4096 * (16 - room))
    capsys.readouterr()
    assert command(*limited) == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "Traceback" not in err
    folder = only(small_disk)
    assert not (folder / "result.json").exists()
    kept = lines(folder)
    assert len(kept) < 6
    assert all(line in whole for line in kept)
    (small_disk / "ballast").unlink()
    assert command(*limited) == 0
    assert lines(folder) == whole


def test_an_append_that_fails_half_way_is_taken_back(
    command: Command, short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The kernel takes some bytes of a line and then no more: the file ends with the last whole line."""
    args = [*short, "method=snapkv", "batch_size=1"]
    appended = []
    original = os.fsync

    def full(descriptor: int) -> None:
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith("samples.jsonl"):
            appended.append(descriptor)
            if len(appended) == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert command(*args) == 1
    assert "No space left on device" in capsys.readouterr().err
    folder = only(tmp_path / "runs")
    assert len(lines(folder)) == 3
    assert "No space left" in json.loads((folder / "error.json").read_text())["error"]
    assert command(*args) == 0
    assert len(lines(folder)) == 6
    assert not (folder / "error.json").exists()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_network")
def test_no_network(refuses: Refuses, command: Command, short: list[str]) -> None:
    """What is on the machine works; what is not says where it was looked for."""
    from lukv.checkpoint import hub_answers

    hub_answers.cache_clear()
    says = "model nobody/no-such-model: no such folder, not in the hub's local cache, and the hub cannot be reached"
    refuses(2, says, *short, "model.path=nobody/no-such-model", "method=snapkv")
    kept = [setting for setting in short if not setting.startswith("benchmark")]
    says = "benchmark.data=nobody/LongBench: not a folder here, and the hub says: "
    refuses(2, says, *kept, "benchmark=longbench", "benchmark.data=nobody/LongBench", "method=snapkv")
    hub_answers.cache_clear()
    assert command(*short, "method=snapkv") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_one_line_a_cause(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dozens of runs of a few models that are not there."""
    from omegaconf import OmegaConf

    from lukv.checkpoint import hub_answers
    from lukv.conf import CONF

    models = OmegaConf.load(CONF / "experiment" / "paper_ruler.yaml").hydra.sweeper.params.model.split(",")

    hub_answers.cache_clear()
    assert command("experiment=paper_ruler", "limit=1", f"runs={tmp_path}/runs") == 2
    hub_answers.cache_clear()
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == len(models), err
    assert len(out.strip().splitlines()) == len(models) + 1, out
    assert " runs: 0 done, 0 skipped, " in out
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize(
    "environment",
    [{}, pytest.param({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, marks=pytest.mark.slow)],
    ids=["without a key", "with a dead server"],
)
def test_wandb_online(
    environment: dict[str, str], refuses: Refuses, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = refuses(1, "W&B: ", *short, "track=wandb", "track.mode=online", "method=snapkv")
    assert "track=none" in line


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
def test_one_sample_of_many_does_not_fit(
    kind: str,
    command: Command,
    short: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is recorded with its reason, the others are done, nothing says "done"; the same command tries it again."""
    original = SnapKV.score

    def score(self: SnapKV, layer: PromptLayer) -> torch.Tensor:
        if layer.keys.shape[1] > 500:
            if kind == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore lines")
            if kind == "cpu":
                torch.empty(2**55, dtype=torch.uint8)  # what torch itself says of too little memory
            raise MemoryError
        return original(self, layer)

    jsonl(tmp_path / "questions.jsonl", [question(i, words=100 if i == 3 else 60) for i in range(6)])
    args = [*short, "method=snapkv"]
    with monkeypatch.context() as patched:
        patched.setattr(SnapKV, "score", score)
        assert command(*args) == 1
    err = capsys.readouterr().err
    assert "1 of 6 samples failed, the first with: out of memory" in err
    assert "Traceback" not in err
    assert "the same command tries these again" in err
    folder = only(tmp_path / "runs")
    assert not (folder / "result.json").exists()
    found = lines(folder)
    assert [(s["id"], s["error"].split(":")[0]) for s in found if "error" in s] == [("questions-4", "out of memory")]
    assert sum("error" not in s for s in found) == 5
    assert command(*args) == 0
    assert json.loads((folder / "result.json").read_text())["tasks"]["questions"]["n"] == 6


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("samples.jsonl", b'{"id": "a", "task": "b"}\n{broken\n', "samples.jsonl, line 2 is not JSON"),
        ("samples.jsonl", b'{"id": "a", "task": "b"}\n\xff\xff\n', "samples.jsonl, line 2 is not JSON"),
        ("samples.jsonl", b"[1, 2]\n", "samples.jsonl, line 1 is not a sample"),
        ("samples.jsonl", b'{"other": 1}\n', "samples.jsonl, line 1 is not a sample"),
        ("run.json", b'{"run_id": ', "run.json is damaged"),
        ("run.json", b"\0" * 64, "run.json is damaged"),
        ("config.yaml", b"a: [1, 2", "config.yaml is damaged"),
        ("config.yaml", b"- 1\n- 2\n", "config.yaml is damaged"),
    ],
)
def test_a_damaged_record(
    name: str, content: bytes, says: str, refuses: Refuses, command: Command, short: list[str], tmp_path: Path
) -> None:
    assert command(*short, "method=snapkv", "limit=1") == 0
    folder = only(tmp_path / "runs")
    (folder / "result.json").unlink()
    (folder / name).write_bytes(content)
    line = refuses(1, says, *short, "method=snapkv", "limit=1")
    assert "remove" in line


def test_a_damaged_result(refuses: Refuses, command: Command, short: list[str], tmp_path: Path) -> None:
    """Neither run.py nor report.py takes it for a finished run, nor ends in a traceback."""
    assert command(*short, "method=snapkv", "limit=1") == 0
    folder = only(tmp_path / "runs")
    (folder / "result.json").write_text('{"status": "do')
    assert command(*short, "method=snapkv", "limit=1") == 1
    done = process("--runs", str(tmp_path / "runs"), program="report.py")
    assert done.returncode == 2, done.stderr
    assert "result.json is damaged" in done.stderr
    assert done.stderr.count("\n") == 1
    shutil.rmtree(folder)
    assert command(*short, "method=snapkv", "limit=1") == 0


def test_nothing_is_left_of_an_interrupted_write(command: Command, short: list[str], tmp_path: Path) -> None:
    assert command(*short, "method=snapkv", "limit=1") == 0
    folder = only(tmp_path / "runs")
    (folder / ".result.json.12345.tmp").write_text("half")
    assert command(*short, "method=snapkv", "limit=1") == 0
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob(".*.tmp"))


def test_without_network_as_a_process(short: list[str], tmp_path: Path) -> None:
    """A real run in a network name space with no interface at all: the embedded model needs none."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("no network name space can be made here")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "run.py", *short, "method=snapkv", "limit=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (only(tmp_path / "runs") / "result.json").exists()
