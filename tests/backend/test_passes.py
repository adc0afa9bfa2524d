"""Extra passes: which forwards are run, what they leave behind, what evicts after them, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from baselines.global_topk import GlobalTopK
from baselines.kvzip import KVzip, KVzipPlus
from lukv.allocation import Budget, Uniform
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import append, compress, stream
from lukv.backend.passes import run_passes
from lukv.scoring import ExtraPass, PassLayer, Prompt, Scorer
from lukv.selection import Eviction, Protection
from tests.reference.dense_reference import eviction, reference_logits, rows, tiny_model


@dataclass(frozen=True)
class Shown(Scorer):
    """Asks for these passes of each prompt, by the number of its tokens, and keeps what it is shown."""

    name: str = "shown"
    asks: Any = field(default=lambda tokens: [(3, 4)], compare=False)

    def extra_passes(self, prompt: Prompt) -> list[ExtraPass]:
        return [ExtraPass(tuple(ids)) for ids in self.asks(len(prompt.ids))]

    def observe_pass(self, observed: list[PassLayer] | None, layer: PassLayer) -> list[PassLayer]:
        copies = replace(layer, keys=layer.keys.clone(), values=layer.values.clone())
        return [*(observed or []), copies]

    def score(self, layer):
        return torch.zeros(layer.keys.shape[:2]) + len(layer.observed or [])


def prompts_of(contexts):
    return [Prompt(tuple(context), lambda text: [7, 8]) for context in contexts]


def shown(cache, scorer, layer=0, row=0):
    return cache.evictable[layer].view(row, *cache.view_entries(layer, row), scorer).observed


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", layers=2)


@pytest.fixture
def forwards(model):
    """The number of tokens in each forward of the model."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield sizes
    hook.remove()


def test_a_pass_is_seen_as_the_prompt_with_the_pass_behind_it(model):
    (context,), asked = rows([17]), (5, 6, 7)
    scorer = Shown(asks=lambda tokens: [asked])
    cache = compress(model, [context], observe=[scorer])
    run_passes(model, cache, [scorer], prompts_of([context]))
    longer = compress(model, [[*context, *asked]], observe=[scorer], record_queries=True)
    behind = compress(model, [context], record_queries=True)
    append(model, behind, [[*asked]])
    for layer in range(2):
        (seen,) = shown(cache, scorer, layer)
        assert (seen.index, seen.layers, seen.tokens, seen.asked.ids) == (layer, 2, 17, asked)
        torch.testing.assert_close(seen.queries, behind.read_queries(layer)[0])
        for ours, whole in zip((seen.keys, seen.values), longer.view_entries(layer, 0), strict=True):
            torch.testing.assert_close(ours, whole)
        assert seen.weigh is None
        assert seen.hidden is None


def test_the_same_text_is_run_once_for_all_who_ask(model, forwards):
    contexts = rows([30, 12])
    scorers = [KVzip(chunk=16), KVzipPlus(chunk=16), KVzip("again", chunk=16), KVzip("other", chunk=40), Shown()]
    cache = compress(model, contexts, observe=scorers)
    forwards.clear()
    run_passes(model, cache, scorers, prompts_of(contexts))
    # of 16 and 14 tokens (with 8 of the chunk before) for the first three, of 30 and then of two for the others
    assert forwards == [2 + 16, 2 + 8 + 14, 2 + 30, 2]


def test_who_else_asks_changes_no_bit(model):
    contexts = rows([30, 12, 20])
    scorers = [Shown("first", lambda tokens: [(1,)] * (tokens // 10)), KVzip(chunk=13), KVzipPlus(chunk=13)]
    together = compress(model, contexts, observe=scorers)
    run_passes(model, together, scorers, prompts_of(contexts))
    for scorer in scorers[1:]:
        alone = compress(model, contexts, observe=[scorer])
        run_passes(model, alone, [scorer], prompts_of(contexts))
        for layer in range(2):
            for row in range(3):
                assert torch.equal(shown(together, scorer, layer, row), shown(alone, scorer, layer, row))


def test_the_cache_is_left_as_it_was(model):
    contexts, question = rows([25, 9]), [[3, 4], [5]]
    untouched = compress(model, contexts)
    scorer = KVzip(chunk=10)
    cache = compress(model, contexts, observe=[scorer])
    run_passes(model, cache, [scorer], prompts_of(contexts))
    assert cache.nbytes == untouched.nbytes
    assert cache.tokens.tolist() == [25, 9]
    assert torch.equal(append(model, cache, question), append(model, untouched, question))


@pytest.mark.parametrize("allocator", [Uniform(), GlobalTopK()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_what_is_kept_is_what_later_tokens_see(family, allocator):
    """compress() evicts after the passes; the logits are those of a dense forward with evicted keys at -inf."""
    model = tiny_model(family)
    contexts, after = rows([40, 23]), [3, 4, 5]
    wanted = Eviction(KVzip(chunk=15), allocator, Protection(recent=2), Budget(share=0.4))
    cache = compress(model, contexts, eviction=wanted, prompts=prompts_of(contexts), chunk=16)
    assert cache.nbytes < cache.full_nbytes
    assert all(layer.options.eviction == wanted for layer in cache.layers)
    logits = append(model, cache, [after, after])
    for row, context in enumerate(contexts):
        layers, _, heads = cache.kept_counts.shape
        total = Budget(share=0.4).entries(len(context), layers * heads)
        each = Budget(share=0.4).entries(len(context), heads)
        assert cache.kept_counts[:, row].sum() == (total if allocator.compares_layers else layers * each)
        cache.rollback()
        append(model, cache, [after, after])
        torch.testing.assert_close(logits[row], reference_logits(model, cache, row, context, after)[-1])


def test_one_prefill_serves_many_budgets_and_allocators(model):
    (context,) = rows([50])
    scorer = KVzip(chunk=20)
    full = compress(model, [context], observe=[scorer])
    run_passes(model, full, [scorer], prompts_of([context]))
    for allocator in (Uniform(), GlobalTopK()):
        for share in (0.1, 0.6):
            wanted = Eviction(scorer, allocator, Protection(), Budget(share=share))
            ours = full.fork_for(wanted)
            alone = compress(model, [context], eviction=wanted, prompts=prompts_of([context]))
            for x, y in zip(ours.state().layers, alone.state().layers, strict=True):
                assert torch.equal(x.positions, y.positions)
    uneven = full.fork_for(Eviction(scorer, GlobalTopK(), Protection(), Budget(share=0.3))).kept_counts
    assert len(set(uneven.sum(axis=(1, 2)).tolist())) == 2, "each layer keeps as much as the other"


def test_a_prompt_that_was_extended_since_is_asked_about_again(model):
    (context,) = rows([20])
    scorer = KVzip(chunk=20)
    cache = compress(model, [context], observe=[scorer])
    run_passes(model, cache, [scorer], prompts_of([context]))
    cache.select(eviction(0.5, Uniform(), scorer))
    append(model, cache, [[3, 4]])
    cache.commit()
    with pytest.raises(
        ValueError, match=r"kvzip asks for extra passes: run_passes\(model, cache, \[kvzip\], prompts\)"
    ):
        cache.select(eviction(0.5, Uniform(), scorer))
    with pytest.raises(ValueError, match=r"the prompts have \[20\] tokens, this cache has seen \[22\]"):
        run_passes(model, cache, [scorer], prompts_of([context]))
    run_passes(model, cache, [scorer], prompts_of([[*context, 3, 4]]))
    again = cache.fork_for(eviction(0.5, Uniform(), scorer))
    assert again.kept_counts.sum(axis=2).tolist() == [[22], [22]]


def test_passes_that_are_run_twice_are_seen_once(model):
    (context,) = rows([20])
    scorer = Shown(asks=lambda tokens: [(1,), (2,)])
    cache = compress(model, [context], observe=[scorer])
    for _ in range(2):
        run_passes(model, cache, [scorer], prompts_of([context]))
        assert [layer.asked.ids for layer in shown(cache, scorer)] == [(1,), (2,)]


def test_what_cannot_be(model):
    contexts = rows([20])
    prompts = prompts_of(contexts)
    kvzip, topk = eviction(0.5, Uniform(), KVzip()), eviction(0.5, GlobalTopK())
    with pytest.raises(
        ValueError, match="scorer kvzip needs the whole prompt, in all layers, before it is evicted: use"
    ):
        RaggedCache(model, kvzip)
    with pytest.raises(ValueError, match="GlobalTopK needs the whole prompt, in all layers, before it is evicted: use"):
        RaggedCache(model, topk)
    for wanted in (kvzip, topk):
        with pytest.raises(ValueError, match="before it is evicted: choose another for later"):
            compress(model, contexts, later=wanted)
        with pytest.raises(ValueError, match="before it is evicted: choose another for later"):
            stream(model, contexts, wanted)
    with pytest.raises(ValueError, match="GlobalTopK compares layers: it cannot evict one by itself"):
        topk.keep(None)
    with pytest.raises(ValueError, match="kvzip asks for extra passes with a text of its own: give the model as"):
        compress(model, contexts, eviction=kvzip)
    with pytest.raises(ValueError, match=r"kvzip asks for extra passes: prefill with observe=\[kvzip\]"):
        run_passes(model, compress(model, contexts), [KVzip()], prompts)
    evicted = compress(model, contexts, eviction=eviction(0.5), observe=[KVzip()])
    with pytest.raises(ValueError, match="this cache was evicted already"):
        run_passes(model, evicted, [KVzip()], prompts)
    nothing = Shown(asks=lambda tokens: [()])
    with pytest.raises(ValueError, match="scorer shown: an extra pass needs at least one token"):
        run_passes(model, compress(model, contexts, observe=[nothing]), [nothing], prompts)


def test_models_that_do_not_show_what_a_scorer_looks_at():
    olmo2 = tiny_model("olmo2", layers=2)
    with pytest.raises(ValueError, match="kvzip_plus cannot be used: layer 0 of this olmo2 has no input_layernorm"):
        compress(olmo2, rows([9]), observe=[KVzipPlus()])
    compress(olmo2, rows([9]), observe=[KVzip()])
