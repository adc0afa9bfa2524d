"""Run folders, command lines and yaml files from before classes and settings got their present names.

old_runs/ has what a version wrote whose classes were in evals/harness and lukv/table.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from evals.run import cli
from evals.run.identity import list_changes
from evals.run.instantiate import find_targets, locate
from evals.run.old_names import PLACES, translate_config, translate_override
from evals.run.overrides import normalize_arguments
from lukv.artifacts import read_tensors
from lukv.conf import CONF
from tests.as_typed import Command

OLD = Path(__file__).parent / "old_runs"

TYPED = {
    "evaluate": [
        *("method=lukv", "budget=0.3", "reference=null", "limit=3"),
        *("benchmark.length=512", "benchmark.tasks=[niah_single_1]", "benchmark.vintage=2025"),
    ],
    "latency": [
        *("job=latency", "method=keydiff", "limit=50"),
        *("job.lengths=[64]", "job.repeats=1", "job.new_tokens=2"),
    ],
    "calibrate": [
        *("job=calibrate", "scorer=keydiff", "limit=50", "calibration.contexts=1", "job.oracle.horizon=2"),
        *("calibration.benchmark.length=512", "calibration.benchmark.tasks=[niah_single_1]"),
    ],
}
"""The arguments that made each of the old folders. limit=50 was the embedded model's own."""


def lay_down(kind: str, runs: Path) -> Path:
    """The old folder under the name that it was made with."""
    folder = runs / json.loads((OLD / kind / "run.json").read_text())["run_id"]
    shutil.copytree(OLD / kind, folder)
    return folder


@pytest.mark.parametrize("kind", TYPED)
def test_a_finished_run_is_done(
    kind: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lay_down(kind, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert command(*TYPED[kind], f"runs={tmp_path}") == 0
    assert f"{folder.name}: already done" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before


def test_an_unfinished_run_goes_on(command: Command, tmp_path: Path) -> None:
    """One sample is done, and the setting has its new name."""
    folder = lay_down("evaluate", tmp_path)
    (folder / "result.json").unlink()
    old = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text(old[0])
    typed = [a.replace("vintage", "ruler_version") for a in TYPED["evaluate"]]
    assert command(*typed, f"runs={tmp_path}") == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    text = (folder / "samples.jsonl").read_text()
    assert text.startswith(old[0])
    assert [json.loads(line)["id"] for line in text.splitlines()] == [json.loads(line)["id"] for line in old]
    assert json.loads((folder / "result.json").read_text())["tasks"]["niah_single_1"]["n"] == 3
    assert len(json.loads((folder / "run.json").read_text())["resumed"]) == 1


@pytest.mark.slow
def test_a_calibration_that_was_begun_goes_on(command: Command, tmp_path: Path) -> None:
    """The fit has the hash that the same command gave it at 79cc9a4, so what it holds is taken over. The other state
    holds scores for thresholds since then: an older one has another hash and begins anew (CHANGELOG.md)."""
    few = ["calibration.contexts=1", "calibration.benchmark.length=512", "calibration.benchmark.tasks=[niah_single_1]"]
    typed = ["job=calibrate", "job.scorers=[keydiff,utility_probe]", "job.oracle.horizon=2", *few]
    assert command(*typed, f"runs={tmp_path}") == 0
    [folder] = tmp_path.iterdir()
    made_for = {name: read_tensors(folder / f"{name}.safetensors")[1]["made_for"] for name in ("fit", "state")}
    assert made_for == {"fit": "67f084df79637cb0", "state": "9c1fece4b7d0ea4e"}


def test_another_setting_is_another_run(tmp_path: Path) -> None:
    folder = lay_down("evaluate", tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("vintage: 2025", "vintage: 2024"))
    [planned] = cli.plan(normalize_arguments([*TYPED["evaluate"], f"runs={tmp_path}"])).planned
    assert planned.run.id != folder.name


@pytest.mark.parametrize(("written", "asked"), [("", "false"), ("  first_token_may_end: null\n", "true")])
def test_a_key_that_came_later_counts_as_its_default_only(written: str, asked: str, tmp_path: Path) -> None:
    """Its default is true. What an old folder does not have was not false, and null is written."""
    typed = [*TYPED["evaluate"], f"benchmark.first_token_may_end={asked}", f"runs={tmp_path}"]
    folder = lay_down("evaluate", tmp_path)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  question_aware: false\n", f"  question_aware: false\n{written}"))
    assert cli.plan(normalize_arguments(typed)).planned[0].run.id != folder.name


def test_keys_that_came_later_in_a_reference(tmp_path: Path) -> None:
    """The run of the full cache beside another has its benchmark's defaults too."""
    [planned] = cli.plan(["method=lukv", f"runs={tmp_path}"]).planned
    reference = planned.run.make_reference()
    assert reference is not None
    old = {**reference.config, "benchmark": {"_target_": "evals.ruler.Ruler", "length": 1024}}
    assert list_changes(old, {"inputs": reference.inputs}, reference) == []


def test_every_new_place_is_there() -> None:
    for place in PLACES.values():
        locate(place)
    used = {t for path in CONF.rglob("*.yaml") for t in find_targets(yaml.safe_load(path.read_text()))}
    assert set(PLACES.values()) <= used


def test_a_yaml_of_the_users_own(command: Command, tmp_path: Path) -> None:
    """A control of LU-KV's budgets and a benchmark, under the names that they had."""
    for group, text in {
        "allocator": "_target_: lukv.controls.LayerMean\npath: models/tiny/tables/keydiff.safetensors\n",
        "benchmark": "_target_: evals.ruler.Ruler\nlength: 700\nvintage: 2025\n",
    }.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text)
    [found] = cli.plan([f"--config-dir={tmp_path}", "method=lukv", "allocator=mine", "benchmark=mine"]).planned
    assert found.run["allocator"]["_target_"] == "lukv.budgets.controls.LayerMean"
    assert found.run["benchmark"] == {"_target_": "evals.ruler.Ruler", "length": 700, "ruler_version": 2025}


def test_old_settings_as_typed() -> None:
    typed = ["share=false", "++benchmark.vintage=2025", "benchmark.seed=3", "-m", "~share", "runs=share=1"]
    new = ["share_prefill=false", "++benchmark.ruler_version=2025", "benchmark.seed=3", "-m", "~share_prefill"]
    assert list(map(translate_override, typed)) == [*new, "runs=share=1"]
    [run] = cli.plan(normalize_arguments(["method=keydiff", "share=false"])).planned
    assert run.run["share_prefill"] is False


def test_what_is_new_stays() -> None:
    config = {"share_prefill": True, "scorer": {"_target_": "my.Scorer", "vintage": 3, "subject": [{"share": 1}]}}
    assert translate_config(config) == config


def test_old_runs_say_nothing_of_the_machine_they_were_made_on() -> None:
    for path in OLD.rglob("*.*"):
        assert not any(word in path.read_text() for word in ("/root", "/home", "/tmp", "/work"))
