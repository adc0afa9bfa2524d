"""Models from the hub: read whole and with their commit; gated, missing, offline, too large: one clear line each.

Each test loads in a process of its own: where the hub is and whether there is a network is read at import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.as_typed import ROOT
from tests.checkpoints.fake_hub import COMMIT, hub
from tests.checkpoints.families import save

LOAD = """
import json, sys
from lukv.model import load
for path, options in json.loads(sys.argv[1]):
    try:
        model = load(path, device="cpu", **options)
        print(json.dumps(["loaded", model.commit, model.eos_ids, bool(model.tokenizer.chat_template)]))
    except (ValueError, FileNotFoundError) as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
NOWHERE = "no such folder, not in the hub's local cache, and the hub cannot be reached"
NO_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), "")


def loaded(tmp_path: Path, *cases: tuple[str, dict], before: str = "", **environment: str) -> list[list]:
    """What became of each load(path, **options), in one new process."""
    clean = {k: v for k, v in os.environ.items() if k not in NO_PROXY and not k.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", before + LOAD, json.dumps(cases)],
        env={**clean, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama-3.1-8b-instruct", tmp_path_factory.mktemp("checkpoints") / "llama")


def test_the_hub(folder: Path, tmp_path: Path) -> None:
    """What is there is read, and stays readable without network; what is gated or missing is named."""
    weightless = tmp_path / "weightless"
    shutil.copytree(folder, weightless, ignore=shutil.ignore_patterns("*.safetensors*"))
    with hub({"some/llama": folder, "some/gated": "GatedRepo", "some/weightless": weightless}) as address:
        whole, gated, missing, revision, weights = loaded(
            tmp_path,
            ("some/llama", {}),
            ("some/gated", {}),
            ("some/typo", {}),
            ("some/llama", {"revision": "f" * 40}),
            ("some/weightless", {}),
            HF_ENDPOINT=address,
        )
    assert whole == ["loaded", COMMIT, [2, 4], True]
    assert gated[0] == "ValueError"
    assert "model some/gated: cannot read its configuration: You are trying to access a gated repo" in gated[1]
    assert "model some/typo: cannot read its configuration: some/typo is not a local folder and is not a" in missing[1]
    assert "ffff is not a valid git identifier" in revision[1]
    assert "model some/weightless: cannot read its weights: no .safetensors files that can be read" in weights[1]
    for _, line in (gated, missing, revision, weights):
        assert "\n" not in line
        assert len(line) <= 400
    again, unknown = loaded(tmp_path, ("some/llama", {}), ("some/other", {}), HF_HUB_OFFLINE="1")
    assert again == whole
    assert unknown == ["FileNotFoundError", f"model some/other: {NOWHERE}"]


def test_no_sockets_at_all(folder: Path, tmp_path: Path) -> None:
    """A folder is read without a look at the network."""
    blocked = """
import socket
def no(*a, **k): raise OSError("blocked")
socket.socket.connect = socket.getaddrinfo = no
"""
    here, there = loaded(tmp_path, (str(folder), {}), ("some/llama", {}), before=blocked)
    assert here == ["loaded", None, [2, 4], True]
    assert there == ["FileNotFoundError", f"model some/llama: {NOWHERE}"]


@pytest.mark.slow
def test_not_enough_memory(tmp_path: Path) -> None:
    """Weights of 420 MB in a process that may take 300 MB more than it has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save("llama-3.1-8b", tmp_path / "large")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.head_dim, config.intermediate_size = 1024, 256, 16384
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    limit = """
import resource, torch
import lukv.model, transformers.models.llama.modeling_llama
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300 * 2**20,) * 2)
"""
    ((kind, line),) = loaded(tmp_path, (str(folder), {"dtype": "float32"}), before=limit)
    assert kind == "ValueError"
    assert line.startswith(f"model {folder}: its weights do not fit into the memory of cpu: use dtype=bfloat16, ")
    assert "\n" not in line
