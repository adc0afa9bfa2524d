"""kvpress's presses through the bridge: the tokens of kvpress's own decoding, and memory only for what it kept."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.peers.bridge_cases import ABSTRACT, CONTEXT, REFUSED, WHOLE, WORK
from tests.peers.conftest import HERE, PYTHON

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

PAGE = HERE.parents[1] / "docs" / "kvpress.md"
FULL = 4 * 4 * CONTEXT * (32 + 32) * 4  # bytes: layers x KV heads x tokens x (key and value) x float32


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make it with `make test-peers`")
    out = tmp_path_factory.mktemp("bridge") / "results.json"
    places = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [PYTHON, HERE / "run_bridge.py", out], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", WORK)
def test_press(results: dict, name: str) -> None:
    result = results["work"][name]
    assert "error" not in result, result["error"]
    assert result["ours"] == result["theirs"]
    assert result["logit"] <= 1e-5
    assert result["our_bytes"] == result["our_bytes_again"] == result["entries"] <= result["their_bytes"]
    if name not in WHOLE:
        assert result["our_bytes"] < result["their_bytes"] or result["their_bytes"] < FULL
    assert result["positions"]
    assert result["attention"] == "lukv_ragged"


def test_presses_keep_different_things(results: dict) -> None:
    """Else a bridge that packs anything would pass."""
    answers = {tuple(results["work"][name]["theirs"]) for name in WORK}
    assert len(answers) > len(WORK) // 2


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_computed(results: dict, name: str) -> None:
    assert REFUSED[name][1] in results["refused"][name]
    assert "\n" not in results["refused"][name]


def test_every_press_of_kvpress_is_tried(results: dict) -> None:
    tried = {*WORK.values(), *(press for press, _ in REFUSED.values()), *ABSTRACT}
    assert set(results["presses"]) <= tried


def test_the_page_says_which_work() -> None:
    rows = dict(re.findall(r"^\| `(\w+Press)` \| (\S+) ", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    refused = {press for press, _ in REFUSED.values() if press} - set(WORK.values())
    assert rows == {**dict.fromkeys(WORK.values(), "yes"), **dict.fromkeys(refused, "no")}


def test_failures_leave_the_model_as_it_was(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make it with `make test-peers`")
    program = HERE / "run_bridge_failures.py"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([PYTHON, program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
