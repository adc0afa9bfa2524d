"""Our pipeline and kvpress's, called alike, give the same answers: the embedded model in float32, greedy.

Contexts are cut to a number of tokens of which both programs keep the same number at each budget.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import lukv
import lukv.pipeline
from evals.ruler import Ruler
from lukv.conf import ROOT
from tests.peers.conftest import HERE, PYTHON

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

TINY = ROOT / "models" / "tiny"
SCORERS = {
    "keydiff": None,
    "snapkv": "snapkv_kvpress",
    "full": None,
}  # the method's own, or the one with kvpress's window
RATIOS = (0.5, 0.75)  # the share removed
OPTIONS = {"max_new_tokens": 16, "max_context_length": 512}


@pytest.fixture(scope="module")
def pipe() -> Any:
    network = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, use_safetensors=True).eval()
    words = AutoTokenizer.from_pretrained(TINY)
    return pipeline("kv-eviction-text-generation", model=network, tokenizer=words, device="cpu")


@pytest.fixture(scope="module")
def calls(pipe: Any) -> list[dict[str, Any]]:
    """Of each context one question with the beginning of its answer, then all of its questions, without one."""
    asked: list[dict[str, Any]] = []
    for task in Ruler(length=768, tasks=["niah_single_1", "niah_multikey_1_prose"]).tasks(pipe.tokenizer, limit=2):
        for sample in task.samples:
            one = {"question": sample.question, "answer_prefix": sample.answer_prefix}
            keys = re.findall(r"magic numbers for (\S+) is: ", sample.context)
            every = [f" What is the special magic number for {key} mentioned in the provided text? " for key in keys]
            asked += [{"context": sample.context, "options": o | OPTIONS} for o in (one, {"questions": every})]
    return asked


@pytest.fixture(scope="module")
def theirs(calls: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Any]]]:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make it with `make test-peers`")
    folder: Path = tmp_path_factory.mktemp("pipeline")
    (folder / "calls.json").write_text(json.dumps(calls))
    command = [PYTHON, HERE / "run_pipeline.py", TINY, folder / "calls.json", folder / "answers.json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, list[Any]]] = json.loads((folder / "answers.json").read_text())
    return found


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", SCORERS)
def test_answers_are_kvpresss(
    name: str, ratio: float, pipe: Any, calls: list[dict[str, Any]], theirs: dict[str, dict[str, list[Any]]]
) -> None:
    method: dict[str, Any] = {"method": name, "budget": 1 - ratio}
    if SCORERS[name] is not None:
        method = {"method": lukv.method(name, 1 - ratio, scorer=SCORERS[name])}
    for number, call in enumerate(calls):
        ours = pipe(call["context"], **method, **call["options"])
        assert ours == theirs[name][str(ratio)][number], f"call {number}"


def test_what_is_compared_is_not_always_the_same(theirs: dict[str, dict[str, list[Any]]]) -> None:
    """The methods lose different answers, and the full cache knows some."""
    assert len({json.dumps(answers) for of in theirs.values() for answers in of.values()}) == 5  # full has no ratio
    assert any(re.search(r"\d{7}", reply.get("answer", "")) for reply in theirs["full"]["0.5"])
