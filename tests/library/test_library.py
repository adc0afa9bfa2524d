"""The library as a user writes it: a model of transformers, borrowed and given back."""

from __future__ import annotations

import json
import threading
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

import lukv
from lukv.backend import generate
from lukv.backend.attention import use_ragged_attention
from lukv.model import Tokenizer
from tests.as_typed import Command
from tests.reference.dense_reference import eviction as noise
from tests.reference.dense_reference import reference_logits, rows, tiny_model

CONTEXTS = ["The cat sat on the mat, and the dog lay by the door. " * 3, "Blue is a colour; so are red and green. " * 2]
QUESTIONS = ["Where did the cat sit?", "Which colours?"]


@pytest.fixture(scope="module")
def ours(model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, use_safetensors=True).eval()


@pytest.fixture(scope="module")
def words(model: Path) -> Tokenizer:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)  # AutoTokenizer would split text as Qwen2 does
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def state(model: PreTrainedModel) -> tuple:
    """All that a block could have left behind."""
    return model.config.to_dict(), model.config._attn_implementation, dict(vars(model)), model.generation_config


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_generate_in_the_block_equals_dense_attention_over_what_is_kept(family: str) -> None:
    """A batch with left padding: each step's logits are those of one dense float64 forward with the evicted at -inf."""
    model, prompts = tiny_model(family), rows([40, 29])
    model.set_attn_implementation("eager")
    ids, mask = torch.zeros(2, 40, dtype=torch.long), torch.zeros(2, 40, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 40 - len(prompt) :], mask[row, 40 - len(prompt) :] = torch.tensor(prompt), 1
    options = {"max_new_tokens": 12, "do_sample": True, "output_logits": True, "return_dict_in_generate": True}
    before = state(model)
    with lukv.eviction(model, noise(0.3)):
        out = model.generate(ids, attention_mask=mask, **options)
    assert state(model) == before
    for row, prompt in enumerate(prompts):
        said = out.sequences[row, 40:].tolist()
        wanted = reference_logits(model, prompt_state(out.past_key_values), row, prompt, said[:-1])
        got = torch.stack([step[row] for step in out.logits[1:]])  # generate hands them out in float32
        assert (got - wanted.float()).abs().max() <= 1e-6


def prompt_state(cache):
    """The cache as it was after its prompt."""
    cache.rollback()
    return cache


def test_a_full_cache_generates_what_transformers_generates(ours: PreTrainedModel, words: Tokenizer) -> None:
    inputs = words(CONTEXTS, return_tensors="pt", padding=True, padding_side="left")
    plain = ours.generate(**inputs, max_new_tokens=20, do_sample=False)
    with lukv.eviction(ours, lukv.method("full")):
        assert torch.equal(ours.generate(**inputs, max_new_tokens=20, do_sample=False), plain)
        several = ours.generate(**inputs, max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert several.shape[0] == 6
    with lukv.eviction(ours, lukv.method("snapkv", 0.1)):
        assert not torch.equal(ours.generate(**inputs, max_new_tokens=20, do_sample=False), plain)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=20, do_sample=False), plain)


def test_the_model_is_given_back_after_an_exception(ours: PreTrainedModel) -> None:
    before = state(ours)
    with pytest.raises(KeyError), lukv.eviction(ours, lukv.method("keydiff", 0.5)):
        raise KeyError("mine")
    for name in ("past_key_values", "cache"):  # transformers calls it so from 5.24 on
        with pytest.raises(ValueError, match=f"leave out {name}:"), lukv.eviction(ours, None):
            ours.generate(torch.ones(1, 4, dtype=torch.long), **{name: DynamicCache()}, max_new_tokens=2)
    assert state(ours) == before


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_what_no_ragged_cache_can_do(ours: PreTrainedModel, options: dict) -> None:
    before = state(ours)
    with pytest.raises(NotImplementedError, match="is not supported"), lukv.eviction(ours, lukv.method("keydiff", 0.5)):
        ours.generate(torch.arange(5, 45)[None], max_new_tokens=8, do_sample=False, **options)
    assert state(ours) == before


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_whichever_attention_it_had(own: str, ours: PreTrainedModel, words: Tokenizer) -> None:
    before = ours.config._attn_implementation
    ours.set_attn_implementation(own)
    cache = lukv.compress(ours, words, CONTEXTS[0], lukv.method("snapkv", 0.5))
    assert ours.config._attn_implementation == own
    lukv.answer(ours, words, cache, QUESTIONS[0], max_new_tokens=2)
    assert ours.config._attn_implementation == own
    ours.set_attn_implementation(before)


def test_one_use_at_a_time(ours: PreTrainedModel, words: Tokenizer) -> None:
    method = lukv.method("keydiff", 0.5)
    before, said = state(ours), []

    def another() -> None:
        try:
            lukv.compress(ours, words, CONTEXTS[0], method)
        except RuntimeError as error:
            said.append(str(error))

    with lukv.eviction(ours, method):
        with pytest.raises(RuntimeError, match="in use by lukv already"), lukv.eviction(ours, method):
            pass
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "in use by lukv already" in said[0]
    assert state(ours) == before
    pieces = lukv.stream_answer(ours, words, lukv.compress(ours, words, CONTEXTS[0], method), QUESTIONS[0])
    next(pieces)
    with pytest.raises(RuntimeError, match="in use by lukv already"), lukv.eviction(ours, method):
        pass
    pieces.close()
    assert state(ours) == before


def test_a_model_in_training_mode(model: Path) -> None:
    trained = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True).train()
    with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\)"), lukv.eviction(trained, None):
        pass


@pytest.mark.parametrize("name", ["full", "snapkv", "adakv"])
def test_answers_are_those_of_the_evaluation(
    name: str, ours: PreTrainedModel, words: Tokenizer, model: Path, command: Command, tmp_path: Path
) -> None:
    """run.py on the same questions, with the same chat template."""
    data = tmp_path / "mine.jsonl"
    samples = [
        {"context": CONTEXTS[0], "question": question, "answer_prefix": prefix, "answers": ["x"], "id": str(i)}
        for i, (question, prefix) in enumerate([(QUESTIONS[0], ""), (QUESTIONS[1], "They are")])
    ]
    data.write_text("\n".join(map(json.dumps, samples)))
    asked = ["benchmark=jsonl", f"benchmark.data={data}", "benchmark.max_new_tokens=30", f"runs={tmp_path}"]
    assert command(*asked, "model=hf", f"model.path={model}", f"method={name}", "budget=0.2", "reference=null") == 0
    (lines,) = tmp_path.glob("*/samples.jsonl")
    records = sorted(map(json.loads, lines.read_text().splitlines()), key=lambda record: record["id"])
    predictions = [record["prediction"] for record in records]
    cache = lukv.compress(ours, words, CONTEXTS[0], lukv.method(name, 0.2, ours))
    for sample, prediction in zip(samples, predictions, strict=True):
        asked_so = (ours, words, cache, str(sample["question"]), 30, str(sample["answer_prefix"]))
        assert lukv.answer(*asked_so) == prediction
        assert "".join(lukv.stream_answer(*asked_so)) == prediction
    assert len(set(predictions)) == 2  # the test has teeth


def test_several_contexts_are_answered_as_each_alone(ours: PreTrainedModel, words: Tokenizer) -> None:
    method = lukv.method("snapkv", 0.3)
    cache = lukv.compress(ours, words, CONTEXTS, method)
    together = lukv.answer(ours, words, cache, QUESTIONS, max_new_tokens=20)
    alone = [
        lukv.answer(ours, words, lukv.compress(ours, words, context, method), question, max_new_tokens=20)
        for context, question in zip(CONTEXTS, QUESTIONS, strict=True)
    ]
    assert together == alone
    assert lukv.answer(ours, words, cache, QUESTIONS, max_new_tokens=20) == together  # it was rolled back


def test_a_saved_cache_answers_the_same(ours: PreTrainedModel, words: Tokenizer, tmp_path: Path) -> None:
    cache = lukv.compress(ours, words, CONTEXTS[0], lukv.method("keydiff", 0.3))
    assert cache.nbytes < 0.31 * cache.full_nbytes
    lukv.save_cache(cache, tmp_path / "context.safetensors")
    before = state(ours)
    again = lukv.load_cache(tmp_path / "context.safetensors", ours)
    assert state(ours) == before
    assert lukv.answer(ours, words, again, QUESTIONS[0]) == lukv.answer(ours, words, cache, QUESTIONS[0])


def test_a_model_that_lukv_loaded_keeps_its_settings(model: Path) -> None:
    bare = lukv.load_model(model, chat=False)
    cache = lukv.compress(bare, bare.tokenizer, CONTEXTS[0], None)
    assert int(cache.tokens[0]) == len(bare.prompt_ids(CONTEXTS[0], "?", "", chat=False)[0])
    with pytest.raises(ValueError, match="the question is empty"):
        lukv.answer(bare, bare.tokenizer, cache, "")
    use_ragged_attention(bare.model)  # it still is


def test_what_cannot_be_asked(ours: PreTrainedModel, words: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no context"):
        lukv.compress(ours, words, [], None)
    with pytest.raises(ValueError, match=r"the context: 9.* tokens, random takes 4096"):
        lukv.compress(ours, words, "x" * 9000, None)
    cache = lukv.compress(ours, words, CONTEXTS, None)
    with pytest.raises(ValueError, match="1 questions for 2 contexts: give a list with one for each"):
        lukv.answer(ours, words, cache, QUESTIONS[0])
    with pytest.raises(ValueError, match="max_new_tokens=0 must be at least 1"):
        lukv.answer(ours, words, cache, QUESTIONS, max_new_tokens=0)
    with pytest.raises(ValueError, match=r"context, question and answer: .* tokens, random takes 4096"):
        lukv.answer(ours, words, cache, QUESTIONS, max_new_tokens=4096)
    with pytest.raises(ValueError, match="a transformers model is expected, this is a str"):
        lukv.compress("models/tiny", words, CONTEXTS, None)  # type: ignore[arg-type]


def test_a_context_in_pieces(
    ours: PreTrainedModel, words: Tokenizer, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same entries stay and the same is answered, whether the call or the loaded model asks for the pieces."""
    sizes: list[int] = []
    feed = generate.feed

    def watch(network: Any, cache: Any, ids: Any, mask: Any, columns: slice) -> torch.Tensor:
        sizes.append(len(range(*columns.indices(ids.shape[1]))))
        return feed(network, cache, ids, mask, columns)

    monkeypatch.setattr(generate, "feed", watch)
    method = lukv.method("expected_attention", 0.3)
    whole = lukv.compress(ours, words, CONTEXTS, method)
    (tokens,) = sizes
    wanted = lukv.answer(ours, words, whole, QUESTIONS)
    ready = lukv.load_model(model, prefill_chunk=40)
    for network, options in ((ours, {"chunk": 40}), (ready, {})):
        sizes.clear()
        pieces = lukv.compress(network, words, CONTEXTS, method, **options)
        assert sizes == [40] * (tokens // 40) + [tokens % 40]
        for layer, row in product(range(len(whole.evictable)), range(2)):
            kept = (cache.find_positions(layer, row) for cache in (whole, pieces))
            assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))
        assert lukv.answer(network, words, pieces, QUESTIONS) == wanted
