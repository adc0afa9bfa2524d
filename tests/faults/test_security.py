"""What a config, a model folder, a table or a prediction may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from evals.run.run_id import join_name
from lukv.conf import CONF
from tests.as_typed import ROOT, Command
from tests.faults.conftest import Refuses, only

PACKAGES = ("lukv", "evals", "baselines", "models", "benchmarks")
SOURCES = [*(path for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py")), ROOT / "run.py", ROOT / "report.py"]


def complaints(source: str) -> Iterator[str]:
    """Calls through which data could run as code, where no rule of ruff knows them (pyproject.toml has the others)."""
    tree = ast.parse(source)
    refused = {
        key
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(value, ast.Constant) and value.value is False
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code" and node not in refused:
            yield f"line {node.lineno}: trust_remote_code"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in ("compile", "__import__"):
            yield f"line {node.lineno}: {name}"
        if name in ("np.load", "np.save", "numpy.load", "numpy.save") and given.get("allow_pickle") != "False":
            yield f"line {node.lineno}: {name} without allow_pickle=False"
        if "trust_remote_code" in given:
            yield f"line {node.lineno}: trust_remote_code"
        if name.endswith("AutoModelForCausalLM.from_pretrained") and given.get("use_safetensors") != "True":
            yield f"line {node.lineno}: weights that may be a pickle"


def test_no_code_comes_out_of_data() -> None:
    assert len(SOURCES) > 80
    assert {path: found for path in SOURCES if (found := list(complaints(path.read_text(encoding="utf-8"))))} == {}


BAD = [
    *("import pickle", "from joblib import load", "eval(x)", "exec(x)", "torch.load(x)", "yaml.load(x)", "time.time()"),
    *(
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "f(trust_remote_code=True)",
        "x = {'trust_remote_code': True}",
        "os.system(x)",
        "compile(x)",
    ),
    *("subprocess.run(x, shell=True)", "AutoModelForCausalLM.from_pretrained(x)"),
]


@pytest.mark.parametrize(
    "line",
    [*BAD, "x = {'trust_remote_code': False}", "model.eval()", "np.load(x, allow_pickle=False)", "yaml.safe_load(x)"],
)
def test_the_search_for_it_finds_it(line: str) -> None:
    """Ruff with this repository's rules, or the search above."""
    imports = "import os, subprocess, time\nimport numpy as np\nimport torch, yaml\n"
    ruff = [sys.executable, "-m", "ruff", "check", "--select", "S,TID251", "--stdin-filename", "evals/some.py", "-"]
    done = subprocess.run(ruff, cwd=ROOT, input=imports + line, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found = done.returncode == 1 or list(complaints(line)) != []
    assert found == (line in BAD), done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["scorer._target_=os.system"], "scorer._target_=os.system is not in lukv, baselines, evals"),
        (["job._target_=shutil.rmtree"], "job._target_=shutil.rmtree is not in lukv, baselines, evals"),
        (["+benchmark.extra={_target_:subprocess.run}"], "_target_=subprocess.run is not in"),
        (["+benchmark.extra=[1,{_target_:subprocess.run}]"], "_target_=subprocess.run is not in"),
        (["track=wandb", "track._target_=builtins.print"], "track._target_=builtins.print is not in"),
        (["benchmark._target_=evals.run.provenance.subprocess.run"], "is no class or function of evals's own"),
        (["benchmark._target_=evals.run.folder.os.system"], "is no class or function of evals's own"),
        (["benchmark._target_=evals.run.folder"], "is no class or function of evals's own"),
        (["benchmark._target_=evals.no.such"], "_target_=evals.no.such cannot be imported"),
        (["job._target_=evals.run.provenance.shlex.join"], "is no class or function of evals's own"),
        (["scorer._target_=lukv.checkpoint.socket.create_connection"], "is no class or function of lukv's own"),
        (["+model.trust_remote_code=true"], "trust_remote_code"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_only_what_is_allowed_is_called(args: list[str], says: str, refuses: Refuses, short: list[str]) -> None:
    refuses(2, says, *short, "method=snapkv", *args)


def test_a_package_of_the_users_own(
    command: Command, short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named in targets= it may be used, and only then."""
    (tmp_path / "own_scorers.py").write_text(
        "from dataclasses import dataclass\nfrom lukv.scoring import Scorer\n\n\n@dataclass(frozen=True)\n"
        "class First(Scorer):\n    def score(self, layer):\n        return layer.keys.float().sum(-1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [*short, "method=snapkv", "scorer=keydiff", "scorer._target_=own_scorers.First", "limit=1"]
    assert command(*own) == 2
    assert command(*own, "targets=[lukv,baselines,evals,own_scorers]") == 0


@given(st.lists(st.text(max_size=300), min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_no_name_leads_out_of_the_runs_folder(parts: list[str]) -> None:
    name = join_name(parts)
    assert Path("runs", name).resolve().parent == Path("runs").resolve()
    assert "/" not in name
    assert not name.startswith(".")
    assert 0 < len(name.encode()) <= 200


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "..", ".hidden", "a/b", "\\x00", "~", "con\\nx"])
def test_names_from_a_config_stay_inside(name: str, command: Command, short: list[str], tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    assert command(*short, "method=snapkv", "limit=1", f"model.name='{name}'") == 0
    folder = only(tmp_path / "runs")
    assert all(path == folder.parent or folder in (path, *path.parents) for path in set(tmp_path.rglob("*")) - before)


def test_a_run_id_cannot_be_given(command: Command, short: list[str], tmp_path: Path) -> None:
    assert command(*short, "method=snapkv", "limit=1", "+job.run_id=../../outside") == 0
    assert only(tmp_path / "runs").name.startswith("random__snapkv__")
    assert not (tmp_path.parent / "outside").exists()


def test_nothing_is_tracked_unless_asked(command: Command, short: list[str], tmp_path: Path) -> None:
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    assert {"track": "none"} in list(defaults)
    assert command(*short, "method=snapkv", "limit=1") == 0
    assert not (only(tmp_path / "runs") / "wandb").exists()
