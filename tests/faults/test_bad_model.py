"""Bad model folders and settings through the command line, as in test_bad_input.py."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Refuses
from tests.faults.test_bad_table import Bomb


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def config(**changed: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def only_config(kind: str) -> Callable[[Path], None]:
    """A config without weights: it must be enough."""

    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        (folder / "model.safetensors").unlink()

    return change


def content(name: str, text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(text) and None


def half_a_shard(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_shard_too_few(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder / "ran")))


def template(text: str) -> Callable[[Path], None]:
    return content("chat_template.jinja", text.encode())


TEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def beyond(folder: Path) -> None:
    """As a tokenizer of another model: one letter has an id that the embedding lacks."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["vocab"]["N"] = 500
    path.write_text(json.dumps(whole))


MODELS: list[tuple[str, Callable[[Path], None], str]] = [
    ("no config", without("config.json"), "it has no config.json"),
    ("empty config", content("config.json", b""), "cannot read its configuration"),
    ("config that is no JSON", content("config.json", b"{nothing"), "cannot read its configuration"),
    ("config that is a list", content("config.json", b"[]"), "cannot read its configuration"),
    ("no tokenizer", without("tokenizer.json", "tokenizer_config.json"), "cannot read its tokenizer"),
    ("tokenizer that is no JSON", content("tokenizer.json", b"{nothing"), "cannot read its tokenizer"),
    ("empty tokenizer", content("tokenizer.json", b""), "cannot read its tokenizer"),
    ("no weights", without("model.safetensors"), "cannot read its weights"),
    ("empty weights", content("model.safetensors", b""), "cannot read its weights"),
    ("half a shard", half_a_shard, "cannot read its weights"),
    ("a shard too few", a_shard_too_few, "cannot read its weights"),
    ("weights in a pickle", pickled_weights, "no file named model.safetensors"),
    ("weights of another shape", config(hidden_size=64), "the checkpoint has another shape for "),
    ("weights of fewer layers", config(num_hidden_layers=3, layer_types=None), "the checkpoint lacks "),
    ("unknown architecture", config(model_type="qwen99"), "cannot read its configuration"),
    ("recurrent architecture", only_config("mamba"), "a state of fixed size"),
    ("attention in code of its own", only_config("bloom"), "bloom computes attention in code of "),
    ("latent attention", only_config("deepseek_v3"), "multi-head latent attention (kv_lora_rank)"),
    ("encoder-decoder", only_config("bart"), "bart is an encoder-decoder model"),
    ("a hybrid", only_config("jamba"), "a state of fixed size"),
    ("an adapter", content("adapter_config.json", b"{}"), "it is a PEFT adapter, not a model: merge it"),
    ("encoder", config(model_type="bert"), "the checkpoint lacks "),
    ("encoder and decoder", config(model_type="t5"), "t5"),
    (
        "all layers slide",
        config(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=128, layer_types=None),
        "has a sliding window of 128: nothing to evict",
    ),
    ("template that is no template", template("{% for"), "its chat template cannot be rendered, "),
    ("template that raises", template("{{ raise_exception('no\\nuser') }}"), "rendered, no user: use model.chat=false"),
    ("template that divides by zero", template("{{ 1 // 0 }}"), "its chat template cannot be rendered, "),
    ("template without the text", template("hello"), "does not hold the user's text"),
    ("template with the text twice", template(TEXT + TEXT), "holds the user's text 2 times"),
    ("template that opens an unknown trace", template(TEXT + "<|think|>"), "may leave a trace open (<|think|>)"),
    ("tokens beyond the embedding", beyond, "token 500 (N) is beyond the 105 rows of the embedding of"),
    (
        "its own code",
        config(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, model_type="evil"),
        "cannot read its configuration",
    ),
]


@pytest.mark.parametrize(("change", "says"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_a_model_folder(
    change: Callable[[Path], None], says: str, refuses: Refuses, short: list[str], model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spoiled"
    shutil.copytree(model, folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    change(folder)
    line = refuses(2, says, *short, f"model.path={folder}", "method=snapkv")
    assert str(folder) in line
    assert not (folder / "ran").exists(), "the model folder's own code was run"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["model.path=/no/such/folder"], "model /no/such/folder: there is no such folder"),
        (["model.dtype=float8"], "dtype=float8 is not known: choose one of auto, "),
        (["model.device=cuda:99"], "device=cuda:99, but torch sees "),
        (["model.device=tpu"], "device=tpu is not known: choose one of auto, cpu, cuda, cuda:N"),
        (["attention=fast"], "attention=fast is not a kernel: choose one of auto, "),
        (["model.prefill_chunk=0"], "prefill_chunk=0 must be at least 1 token, or null: the whole prompt at once"),
        (["model.prefill_chunk=all"], "prefill_chunk=all must be at least 1 token"),
        (["model.path=3"], "model 3"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_model_setting(args: list[str], says: str, refuses: Refuses, short: list[str]) -> None:
    refuses(2, says, *short, *args, "method=snapkv")
