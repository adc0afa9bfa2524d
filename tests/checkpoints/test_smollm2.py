"""A real model: SmolLM2-135M-Instruct out of the file that `make smollm2` fetches."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from lukv.backend.cache import RaggedCache
from lukv.model import LoadedModel, load
from tests.as_typed import ROOT
from tests.checkpoints.smollm2 import need_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(need_file(), dtype="float32", device="cpu")


def test_what_is_loaded(loaded: LoadedModel) -> None:
    """The hashes are those of every table made for this model: a change here makes them all worthless."""
    assert (loaded.layers, loaded.kv_heads, loaded.max_length) == (30, 3, 8192)
    assert (loaded.config_hash, loaded.weights_hash) == ("bb0c4b2ff4c3", "a69f287760ae")
    assert loaded.eos_ids == (2,)
    context, rest = loaded.prompt_ids("The grass is green.", " What is green?", "It is")
    assert loaded.tokenizer.decode(context + rest) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nThe grass is green. What is green?<|im_end|>\n<|im_start|>assistant\nIt is"
    )


@torch.no_grad()
def test_the_ragged_cache_is_as_exact_as_stock(loaded: LoadedModel) -> None:
    """1024 tokens of text, then 8 more through the full cache: against float64, we err no more than twice as much as
    the stock model does, the two being different roundings of the same sums."""
    text = (ROOT / "README.md").read_text() * 2
    ids = torch.tensor([loaded.prompt_ids(text, "", "")[0][:1032]])
    cache = RaggedCache(loaded.model)
    first = loaded.model(ids[:, :1024], past_key_values=cache, logits_to_keep=64).logits
    ours = torch.cat([first, loaded.model(ids[:, 1024:], past_key_values=cache).logits], dim=1)
    stock = deepcopy(loaded.model)
    stock.set_attn_implementation("sdpa")
    theirs = stock(ids, logits_to_keep=72).logits
    exact = stock.double()(ids, logits_to_keep=72).logits
    allowed = 2 * (theirs - exact).abs().max()
    assert allowed < 1e-2 * exact.abs().max()
    assert (ours - exact).abs().max() <= allowed


def test_calibrates_and_evaluates_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    need_file()
    monkeypatch.chdir(ROOT)
    common = ["model=smollm2-135m-q4", f"model.tables={tmp_path}/tables", f"runs={tmp_path}/runs", "scorer=keydiff"]

    def typed(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *args, *common])
        return run.run()

    data = ["benchmark.length=768", "benchmark.tasks=[niah_single_1]"]
    assert typed("job=calibrate", "job.save=true", *(f"calibration.{d}" for d in data), "calibration.contexts=2") == 0
    assert typed("method=lukv", "budget=0.2", "limit=2", *data) == 0
    (result,) = (json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*__lukv*b0.2*/result.json"))
    assert result["model"] == "smollm2-135m-q4"
    assert result["budget"]["kept_share"] == pytest.approx(0.2, abs=0.001)
    assert result["tasks"]["niah_single_1"]["n"] == 2
