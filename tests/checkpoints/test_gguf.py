"""GGUF files are plain models with the logits of the tensors dequantized by hand; all else is one line."""

from __future__ import annotations

import json
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("gguf", reason="the package gguf is not installed")

from lukv.backend.cache import RaggedCache
from lukv.backend.generate import answer, compress
from lukv.model import load
from tests.as_typed import Command
from tests.checkpoints.gguf_files import MERGES, Written, vocabulary, write

CASES = [("llama", "Q8_0"), ("llama", "Q4_1"), ("qwen2", "Q8_0"), ("qwen2", "F16")]
CONTEXT = "in the in the then, 12345 the\nin " * 5


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    kind, quantization = request.param
    return write(tmp_path_factory.mktemp("gguf") / f"{kind}.gguf", kind, quantization)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "llama.gguf").path


def test_logits_are_those_of_the_dequantized_tensors(written: Written) -> None:
    loaded = load(written.path, dtype="float32", device="cpu")
    for name, weight in written.plain.named_parameters():
        torch.testing.assert_close(loaded.model.get_parameter(name), weight, rtol=0, atol=0)
    ids = torch.arange(len(vocabulary()))[None]
    with torch.no_grad():
        ours = loaded.model(ids, past_key_values=RaggedCache(loaded.model)).logits
        theirs = written.plain(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_model_is_a_plain_one_that_can_be_saved(written: Written, tmp_path: Path) -> None:
    """Dequantized once, to bfloat16 where nothing is asked; what is saved from it is the same model to every table."""
    loaded = load(written.path, device="cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert getattr(loaded.model.config, "quantization_config", None) is None
    assert {type(m) for m in loaded.model.modules() if hasattr(m, "in_features")} == {nn.Linear}
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, device="cpu")
    assert again.weights_hash == loaded.weights_hash == load(written.path, dtype="float32").weights_hash
    assert (again.config_hash, again.eos_ids) == (loaded.config_hash, loaded.eos_ids)
    assert again.prompt_ids(CONTEXT, " the?", "in") == loaded.prompt_ids(CONTEXT, " the?", "in")
    context, question = loaded.prompt_ids(CONTEXT, " the?", "in")
    first, second = (answer(m, compress(m, [context]), [question], 4).tokens for m in (loaded, again))
    assert first == second


def test_the_tokenizer_is_the_files(llama: Path, tmp_path: Path) -> None:
    loaded = load(llama, device="cpu")
    tokens = loaded.tokenizer.convert_ids_to_tokens
    context, rest = loaded.prompt_ids("in the", " then", "")
    assert tokens(context) == ["<|im_start|>", "u", "s", "e", "r", "Ċ", "in", "Ġthe"]
    assert tokens(rest)[:3] == ["Ġthe", "n", "<|im_end|>"]
    assert loaded.decode([*context, 2]) == "user\nin the"
    assert loaded.max_length == 512
    beside = tmp_path / "model.gguf"  # a tokenizer beside the file is not the file's
    shutil.copy(llama, beside)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "other"}))
    (tmp_path / "config.json").write_text("{}")
    assert load(beside, device="cpu").prompt_ids("in the", " then", "") == (context, rest)


def test_another_tokenizer_can_be_named(llama: Path, tmp_path: Path) -> None:
    other = load(llama, device="cpu").tokenizer
    other.chat_template = "{% for m in messages %}the {{ m['content'] }}{% endfor %}"
    other.save_pretrained(tmp_path)
    loaded = load(llama, device="cpu", tokenizer=tmp_path)
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.prompt_ids(" in", "the", "")[0]) == ["the", "Ġ", "Ġ", "in"]
    with pytest.raises(FileNotFoundError, match=r"it has no tokenizer_config\.json"):
        load(llama, tokenizer=llama.parent)


@pytest.mark.parametrize(
    ("ids", "ends"), [({}, (2,)), ({"padding": 0}, (0, 2)), ({"eot": 3, "padding": 2}, (2, 3)), ({"eom": 0}, (0, 2))]
)
def test_every_end_that_the_file_names_ends_an_answer(
    ids: dict[str, int], ends: tuple[int, ...], tmp_path: Path
) -> None:
    assert load(write(tmp_path / "a.gguf", **ids).path, device="cpu").eos_ids == ends


DIGITS = {"smollm": ["in", "ĠĠ", "1", "2"], "gpt-2": ["in", "Ġ", "Ġ", "12"]}


@pytest.mark.parametrize("pre", DIGITS)
def test_texts_are_split_by_the_rule_that_the_file_names(pre: str, tmp_path: Path, caplog) -> None:
    """SmolLM2's tokenizer.json: Digits(individual_digits=True), then ByteLevel, so digits stand alone."""
    loaded = load(write(tmp_path / "a.gguf", pre=pre).path, device="cpu")
    assert loaded.tokenizer.tokenize("in  12") == DIGITS[pre]
    assert loaded.tokenizer.tokenize("in the 31, then\n3") == ["in", "Ġthe", "Ġ", *"31,", "Ġthe", "n", "Ċ", "3"]
    assert (loaded.caveats, caplog.messages) == ((), [])


@pytest.mark.parametrize(("pre", "says"), [("klingon", "names the pre-tokenizer 'klingon'"), (None, "names no pre-")])
def test_an_unknown_rule_is_a_caveat(pre: str | None, says: str, tmp_path: Path, caplog) -> None:
    loaded = load(write(tmp_path / "a.gguf", pre=pre).path, device="cpu")
    assert caplog.messages == list(loaded.caveats)
    (line,) = loaded.caveats
    assert says in line
    assert "\n" not in line
    assert loaded.tokenizer.tokenize("in  12") == DIGITS["gpt-2"]


def spoil(content: bytes, how: str) -> bytes:
    return {
        "empty": b"",
        "foreign": b"PK\x03\x04" + content[4:],
        "only the magic": content[:4],
        "within the keys": content[:300],
        "within the tensors": content[: len(content) * 2 // 3],
        "the last bytes": content[:-40],
        "version": content[:4] + struct.pack("<I", 9) + content[8:],
        "counts": content[:16] + struct.pack("<Q", 2**60) + content[24:],
        "types": content[:24] + content[24:].replace(b"\x08\x00\x00\x00", b"\x63\x00\x00\x00", 1),
        "architecture": content.replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"klama"),
        "unnamed": content.replace(b"general.architecture", b"general.brchitecture"),
    }[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("empty", "it is not a GGUF file"),
        ("foreign", "it is not a GGUF file"),
        ("only the magic", "within its header"),
        ("within the keys", "within its header"),
        ("within the tensors", "it is cut off"),
        ("the last bytes", "it is cut off"),
        ("version", "version 9 of GGUF"),
        ("counts", "its header is damaged: it counts 1152921504606846976"),
        ("types", "value of type 99"),
        ("architecture", "architecture klama is not supported yet"),
        ("unnamed", "it names no architecture"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(how: str, says: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(spoil(llama.read_bytes(), how))
    with pytest.raises(ValueError, match="cannot read its configuration") as error:
        load(path)
    assert str(error.value).startswith(f"model {path}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_tensor_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf").path
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_yp.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 of the network's tensors, model\.layers\.1\.mlp\.up_proj\.weight"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no such file \(make it with: make smollm2\)"):
        load(tmp_path / "no.gguf", made_by="make smollm2")
    with pytest.raises(FileNotFoundError, match=r"there is no such file \(give a folder"):
        load("no.gguf")


def test_without_the_package(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lukv.gguf.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package gguf: pip install 'gguf>=") as error:
        load(llama)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_as_typed(llama: Path, tmp_path: Path, command: Command, capsys) -> None:
    """Calibrated and evaluated from the command line; a broken file is one line and exit code 2."""
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"context": CONTEXT, "question": " the?", "answers": ["in"]}) + "\n")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(llama.read_bytes()[:-100])
    common = ["scorer=keydiff", f"runs={tmp_path}/runs", f"model.tables={tmp_path}/tables", "model=hf"]
    test = ["benchmark=jsonl", f"benchmark.data={data}", "benchmark.max_new_tokens=2", "budget=0.5"]

    def typed(path: Path, *args: str) -> int:
        return command(*args, *common, f"model.path={path}", "model.device=cpu")

    assert typed(llama, "job=calibrate", "job.save=true", f"calibration=file:{data}") == 0
    assert typed(llama, "method=lukv", *test) == 0
    (result,) = (tmp_path / "runs").glob("*lukv*b0.5*/result.json")
    assert json.loads(result.read_text())["budget"]["kept_share"] == pytest.approx(0.5, abs=0.01)
    capsys.readouterr()
    assert typed(broken, "method=snapkv", *test) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"model {broken}: cannot read its configuration: it is cut off" in said[0]


def test_an_old_transformers_reads_no_tokenizer(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(llama).tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("lukv.gguf.find_spec", lambda name: find_spec(name) if name == "gguf" else None)
    with pytest.raises(ValueError, match=r"use transformers>=5\.20, or name another one with model\.tokenizer"):
        load(llama)
    assert load(llama, tokenizer=tmp_path).tokenizer.chat_template


def test_the_vocabulary_is_sound() -> None:
    assert all(merge.replace(" ", "") in vocabulary() for merge in MERGES)
