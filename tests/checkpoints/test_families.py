"""Every yaml of conf/model/ loads a checkpoint of its architecture and evaluates it, as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from lukv.backend.generate import answer, compress
from lukv.conf import CONF
from lukv.model import load
from tests.checkpoints.families import FAMILIES, save

MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml") if "\nrevision: " in p.read_text() and p.stem != "hf")
"""Those on the hub, not the ones that this repository trains."""


def test_every_model_has_a_family() -> None:
    assert sorted(FAMILIES) == MODELS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder an architecture."""
    first = {kind: name for name, (kind, _) in reversed(FAMILIES.items())}
    made = {kind: save(name, tmp_path_factory.mktemp("checkpoints") / kind) for kind, name in first.items()}
    return {name: made[kind] for name, (kind, _) in FAMILIES.items()}


@pytest.mark.parametrize("name", MODELS)
def test_settings(name: str) -> None:
    settings = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    assert settings.name == name
    assert settings.path.count("/") == 1
    assert len(settings.revision) == 40
    assert settings.dtype == "bfloat16"
    assert settings.max_length >= 8192
    instructed = "instruct" in name or name.endswith("-it") or name == "qwen3-8b"
    assert settings.get("chat", True) == instructed


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in FAMILIES.values()}))
def test_a_sharded_checkpoint_is_read_whole(kind: str, folders: dict[str, Path]) -> None:
    folder = folders[next(name for name, family in FAMILIES.items() if family[0] == kind)]
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    loaded = load(folder, device="cpu")
    assert loaded.eos_ids == (2, 4)
    assert loaded.tokenizer.chat_template
    assert loaded.max_length == 4096
    assert loaded.commit is None
    have = {name.split("model.")[-1]: w for name, w in loaded.model.state_dict().items()}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                torch.testing.assert_close(have[name.split("model.")[-1]], file.get_tensor(name), rtol=0, atol=0)
    context, question = loaded.prompt_ids("The grass is green. " * 8, "What is green?", "It is")
    cache = compress(loaded, [context])
    assert len(answer(loaded, cache, [question], 4).tokens[0]) == 4
    plain = load(folder, device="cpu", chat=False, max_length=100)
    assert plain.prompt_ids("ab", "c", "d")[0] == loaded.prompt_ids("ab", "c", "d", chat=False)[0]
    assert (plain.max_length, plain.tokenizer.model_max_length) == (100, 100)


@pytest.mark.parametrize("name", MODELS)
def test_evaluates_as_typed(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import run

    rows = [
        {"context": f"The {c} box holds {n} balls. " * 9, "question": f"How many in the {c} box?", "answers": [n]}
        for c, n in (("red", "three"), ("blue", "seven"))
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = [f"model.path={folders[name]}", "model.device=cpu", "model.device_map=null", "model.dtype=float32"]
    args = ["method=snapkv", "budget=0.5", f"model={name}", *local, "model.max_length=1000", f"runs={tmp_path}/runs"]
    monkeypatch.chdir(CONF.parent)
    monkeypatch.setattr(
        sys, "argv", ["run.py", *args, "benchmark=jsonl", f"benchmark.data={data}", "benchmark.max_new_tokens=4"]
    )
    assert run.run() == 0
    (folder,) = (tmp_path / "runs").glob(f"{name}__snapkv*")
    result = json.loads((folder / "result.json").read_text())
    assert result["model"] == name
    assert result["budget"]["kept_share"] == pytest.approx(0.5, abs=0.01)
    about = json.loads((folder / "run.json").read_text())
    assert about["model_commit"] is None
    assert about["inputs"].keys() >= {"model.path", "benchmark.data"}
