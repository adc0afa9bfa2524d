"""Loading from folders, and how a sample's text becomes token ids."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lukv.backend.config import hash_config
from lukv.backend.generate import answer, compress
from lukv.backend.options import ATTENTION
from lukv.chat import render
from lukv.model import load
from tests.reference.dense_reference import tiny_model

WORDS = ["the", "grass", "is", "green", "?", "#", "user", "assistant", "end", "key", "value", "1", "2", "3"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}user {{ m['content'] | trim }} end "
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "qwen2-tiny"
    tiny_model("qwen2", torch.float32, layers=1).save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder, device="cpu")


def test_what_is_loaded(loaded, folder):
    assert (loaded.name, loaded.path) == ("qwen2-tiny", str(folder))
    assert (loaded.layers, loaded.kv_heads, loaded.device.type) == (1, 2, "cpu")
    assert loaded.eos_ids == (1,)
    assert loaded.model.dtype == torch.float32
    assert load(folder, dtype="bfloat16").config_hash == loaded.config_hash == hash_config(loaded.model.config)
    assert load(folder, name="other", dtype="bfloat16").model.dtype == torch.bfloat16
    assert hash_config(tiny_model("qwen2", layers=2).config) != loaded.config_hash
    assert loaded.count_tokens("the grass is") == 3


def test_other_weights_of_the_same_geometry_are_told_apart(loaded, folder):
    assert load(folder, dtype="bfloat16").weights_hash == load(folder, name="other").weights_hash == loaded.weights_hash
    for name, parameter in loaded.model.named_parameters():
        other = load(folder)
        with torch.no_grad():
            other.model.get_parameter(name).mul_(1.1).add_(0.01)
        assert other.weights_hash != loaded.weights_hash, (name, parameter.shape)
        assert other.config_hash == loaded.config_hash


def test_prompt_ids_follow_the_chat_template(loaded):
    context, rest = loaded.prompt_ids(" the grass is", " green ?", "key")
    text = loaded.tokenizer.convert_ids_to_tokens
    assert text(context) == ["<s>", "user", "the", "grass", "is"]
    assert text(rest) == ["green", "?", "end", "assistant", "key"]
    marked, _ = loaded.prompt_ids("the grass #", "?", "")
    assert text(marked) == ["<s>", "user", "the", "grass", "#"]
    plain, rest = loaded.prompt_ids("the grass is", "green ?", "key", chat=False)
    assert text(plain) == ["<s>", "the", "grass", "is"]
    assert text(rest) == ["green", "?", "key"]
    continued, rest = loaded.prompt_ids("the grass is", "", "", chat=False)
    assert (text(continued), text(rest)) == (["<s>", "the", "grass"], ["is"])


def test_a_question_of_no_token_begins_with_the_contexts_last(folder):
    """A template without a tail leaves nothing else to ask with."""
    loaded = load(folder, device="cpu")
    text = loaded.tokenizer.convert_ids_to_tokens
    loaded.tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %}"
    continued, rest = loaded.prompt_ids("the grass", "", "")
    assert (text(continued), text(rest)) == (["user", "the"], ["grass"])
    assert [text(part) for part in loaded.prompt_ids("the", "is", "")] == [["user", "the"], ["is"]]
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="the context has no token that could be compressed"):
        loaded.prompt_ids("the", "", "")


def test_tokens_that_the_model_does_not_have(folder):
    loaded = load(folder, device="cpu")
    loaded.tokenizer.add_tokens(["beyond", *(f"more{i}" for i in range(100))])
    assert loaded.prompt_ids("the grass", "is", "")[1]
    with pytest.raises(ValueError, match=r"token \d+ \(more90\) is beyond the 97 rows of the embedding of"):
        loaded.prompt_ids("the more90 more3", "is", "")


def test_a_thinking_model(folder):
    """It gets no answer prefix while it may think, and its trace is no answer."""
    template = TEMPLATE + "{% if enable_thinking %}assistant {% else %}key {% endif %}"
    for thinking, asked in ((False, ["key", "value"]), (True, ["assistant"])):
        loaded = load(folder, device="cpu", thinking=thinking)
        loaded.tokenizer.chat_template = template
        assert loaded.tokenizer.convert_ids_to_tokens(loaded.prompt_ids("the", "is", "value")[1])[3:] == asked
    loaded.tokenizer.add_tokens(["<think>", "</think>"])
    said = loaded.tokenizer.encode("<think> the grass </think> is green", add_special_tokens=False)
    stop = loaded.stop_at(["grass"])
    assert (loaded.decode(said), loaded.decode(said[:3]), stop(said)) == ("is green", "", False)


def test_whatever_attention_the_config_names(folder, tmp_path):
    """This backend replaces it, so that a package that is absent is not missed."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    for name in ("attn_implementation", "_attn_implementation"):
        (tmp_path / "config.json").write_text(json.dumps({**settings, name: "flash_attention_2"}))
        loaded = load(tmp_path, device="cpu")
        assert loaded.model.config._attn_implementation == ATTENTION
        assert loaded.config_hash == load(folder, device="cpu").config_hash


@pytest.fixture(scope="module")
def speaking(model):
    """Every token of its vocabulary is a character: what it answers can be read."""
    return load(model, device="cpu")


def test_a_loaded_model_answers_and_stops(speaking):
    context, question = speaking.prompt_ids("the grass is green " * 9, "green ?", "")
    cache = compress(speaking, [context])
    whole = speaking.decode(answer(speaking, cache, [question], 8).tokens[0])
    string = whole[2:4]
    end = whole.index(string) + 2
    assert end < len(whole) == 8
    cache.rollback()
    stopped = answer(speaking, cache, [question], 8, stop=speaking.stop_at(["never said", string])).tokens[0]
    assert speaking.decode(stopped) == whole[:end]
    assert cache.kernel in ("native", "loop")  # with a compiler and without


def test_stop_strings_are_looked_for_in_the_text(loaded):
    assert loaded.stop_at(()) is None
    assert loaded.stop_at(["green", "grass"])(loaded.tokenizer.encode("the grass"))
    assert not loaded.stop_at(["green", "grass"])(loaded.tokenizer.encode("the key"))


@pytest.mark.parametrize("length", [1, 2])
def test_a_forced_token_completes_no_stop_string(speaking, length):
    context, question = speaking.prompt_ids("the grass is green " * 9, "green ?", "")
    cache = compress(speaking, [context])
    whole = speaking.decode(answer(speaking, cache, [question], 8).tokens[0])
    string = whole[:length]
    for least in (length, 3):
        cache.rollback()
        said = answer(speaking, cache, [question], 8, stop=speaking.stop_at([string]), min_new_tokens=least).tokens[0]
        text = speaking.decode(said)
        assert len(text) >= least
        assert string not in text[:least]
        assert text[: length - 1] == whole[: length - 1]  # up to there nothing had to be avoided


def test_the_first_tokens_do_not_end_an_answer_that_must_have_some(loaded):
    context, question = loaded.prompt_ids("the grass is green " * 9, "green ?", "")
    cache = compress(loaded, [context])
    first = answer(loaded, cache, [question], 1).tokens[0]
    cache.rollback()
    assert answer(loaded, cache, [question], 8, eos_ids=first).tokens[0] == []
    cache.rollback()
    forced = answer(loaded, cache, [question], 8, eos_ids=first, min_new_tokens=3).tokens[0]
    assert len(forced) >= 3
    assert first[0] not in forced
    cache.rollback()
    free = answer(loaded, cache, [question], 8).tokens[0]
    cache.rollback()
    again = free.index(first[0], 1) if first[0] in free[1:] else len(free)
    unchecked = answer(loaded, cache, [question], 8, eos_ids=first, first_token_may_end=False).tokens[0]
    assert unchecked == free[:again]  # the first one stays, the next like it ends the answer
    assert len(unchecked) >= 1


def test_what_cannot_be_loaded_is_one_line(folder, tmp_path, monkeypatch):
    def message(*arguments, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load(*arguments, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "there is no such folder" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in message(tmp_path / "empty")
    monkeypatch.setattr("lukv.checkpoint.hub_answers", lambda: False)
    assert "no such folder, not in the hub's local cache" in message("nosuch/model")
    assert "dtype=float8 is not known: choose one of auto, float64" in message(folder, dtype="float8")
    assert "attention=flash is not a kernel" in message(folder, attention="flash")
    if not torch.cuda.is_available():
        assert "torch sees no CUDA device" in message(folder, device="cuda")

    def copy(without=(), **contents):
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*without))
        for name, content in contents.items():
            (target / name.replace("__", ".")).write_bytes(content)
        return target

    assert "cannot read its tokenizer" in message(copy(["tokenizer*"]))
    assert "cannot read its weights" in message(copy(["*.safetensors"]))
    assert "cannot read its weights" in message(copy(model__safetensors=b"garbage"))
    assert "cannot read its configuration" in message(copy(config__json=b"{broken"))
    assert "cannot read its configuration" in message(copy(config__json=b'{"model_type": "nonesuch"}'))
    sliding = tmp_path / "sliding"
    model = tiny_model("mistral", layers=1, sliding_window=None)
    model.config.sliding_window = 24
    model.save_pretrained(sliding)
    assert "nothing to evict" in message(sliding)


def test_a_pinned_date_is_what_the_template_takes_for_today(folder, tmp_path):
    """Only the date differs, in whatever format it is asked for."""
    today = "\n {{ strftime_now('%d %B %Y, %-d %b %y') }} "
    dated = shutil.copytree(folder, tmp_path / "dated")
    (dated / "chat_template.jinja").write_text(today + TEMPLATE)
    written = shutil.copytree(folder, tmp_path / "written")
    (written / "chat_template.jinja").write_text("\n 06 July 2024, 6 Jul 24 " + TEMPLATE)
    asked = "the grass", "green ?", ""
    pinned = load(dated, device="cpu", date="2024-07-06")
    plain = load(written, device="cpu")
    assert render(pinned.tokenizer, "the grass", day=pinned.date) == render(plain.tokenizer, "the grass")
    assert pinned.prompt_ids(*asked) == plain.prompt_ids(*asked)
    with pytest.raises(ValueError, match="date=today is no date: write it as 2024-07-26"):
        load(dated, device="cpu", date="today")
