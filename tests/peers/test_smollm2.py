"""A real model's answers after eviction, ours and kvpress's: the same tokens, greedy, in float32, 20% kept."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from baselines.keydiff import KeyDiff
from baselines.snapkv import SnapKV
from evals.ruler import Ruler
from lukv.allocation import Budget, Uniform
from lukv.backend.generate import answer, compress
from lukv.model import load
from lukv.selection import Eviction, Protection
from tests.checkpoints.smollm2 import need_file
from tests.peers.conftest import HERE, PYTHON

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

SCORERS = {"keydiff": KeyDiff(), "snapkv": SnapKV("snapkv_kvpress", window=64, kernel=5, pool="avg")}
KEPT, TOKENS = 1 - 0.8, 12  # kvpress's floats, and the tokens of an answer


def test_predictions_are_kvpresss(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is not there: make it with `make test-peers`")
    loaded = load(need_file(), dtype="float32", device="cpu")
    loaded.model.save_pretrained(tmp_path / "model")
    tasks = Ruler(length=768, tasks=["niah_single_1", "niah_multikey_1_noise"]).tasks(loaded.tokenizer, limit=2)
    texts = [(s.context, s.question, s.answer_prefix) for task in tasks for s in task.samples]
    prompts = [loaded.prompt_ids(*text) for text in texts]
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps([{"context": c, "question": q} for c, q in prompts]))
    environment = {**os.environ, "PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1"}
    command = [PYTHON, HERE / "run_smollm2.py", tmp_path / "model", samples, tmp_path / "answers.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "answers.json").read_text())
    for name, scorer in SCORERS.items():
        for number, (context, question) in enumerate(prompts):
            budget = Budget(tokens=int(len(context) * KEPT))
            cache = compress(loaded, [context], eviction=Eviction(scorer, Uniform(), Protection(), budget))
            ours = answer(loaded, cache, [question], TOKENS).tokens[0]
            assert ours == theirs[name][number], f"{name}, sample {number}: {texts[number][1]}"
    assert theirs["keydiff"] != theirs["snapkv"]
