"""KVzip's passes by hand, and its scores against their definition, written out densely in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from baselines.kvzip import FIRST, NEXT, KVzip, KVzipPlus
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress
from lukv.backend.passes import run_passes
from lukv.scoring import Prompt
from tests.core.small_models import small_model, text

SAYS = {FIRST: [21, 22, 23], NEXT: [24, 25], NEXT + " ": [24, 26]}
SEEN: dict[int, tuple[torch.Tensor, ...]] = {}  # layer -> queries [H, T, d], keys [K, T, d], values, scale, softcap


def capture(module, query, key, value, mask, dropout=0.0, scaling=None, softcap=None, **_):
    """Plain causal attention that keeps what it was given."""
    group = query.shape[1] // key.shape[1]
    SEEN[module.layer_idx] = query[0], key[0], value[0], scaling, softcap
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
    return (logits.softmax(-1) @ value.repeat_interleave(group, 1)).transpose(1, 2), None


AttentionInterface.register("capture_for_kvzip", capture)
AttentionMaskInterface.register("capture_for_kvzip", eager_mask)


def whole_text(loaded, ids):
    """One plain forward: fills SEEN, returns what each layer's attention got as input, [T, D]."""
    inputs, hooks = {}, []
    for index, layer in enumerate(loaded.model.model.layers):
        hook = layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, i=index: inputs.update({i: kwargs["hidden_states"][0]}), with_kwargs=True
        )
        hooks.append(hook)
    loaded.model.set_attn_implementation("capture_for_kvzip")
    with torch.no_grad():
        loaded.model(torch.tensor([ids]), use_cache=False)
    use_ragged_attention(loaded.model)
    for hook in hooks:
        hook.remove()
    return inputs


def by_definition(loaded, context, passes, sinks, plus=False):
    """[layers, K, T]: passes are (start, end, ids); `sinks` first tokens are seen beside each chunk."""
    config = loaded.config
    scores = torch.zeros(config.num_hidden_layers, config.num_key_value_heads, len(context), dtype=torch.float64)
    group = config.num_attention_heads // config.num_key_value_heads
    for start, end, ids in passes:
        inputs = whole_text(loaded, context + ids)
        for layer, (queries, keys, values, scale, softcap) in SEEN.items():
            out = loaded.model.model.layers[layer].self_attn.o_proj.weight.detach()
            for h in range(config.num_attention_heads):
                k, first = h // group, min(sinks, start)
                for row in range(len(context), len(context) + len(ids)):
                    seen = [*range(first), *range(start, end), *range(len(context), row + 1)]
                    logits = keys[k, seen] @ queries[h, row] * scale
                    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
                    weight = logits.softmax(-1)[first : first + end - start]
                    if plus:
                        block = out[:, h * config.head_dim : (h + 1) * config.head_dim]
                        weight = weight * (values[k, start:end] @ block.T).norm(dim=-1) / inputs[layer][row].norm()
                    scores[layer, k, start:end] = torch.maximum(scores[layer, k, start:end], weight)
    return scores


def scores_of(cache, scorer, row=0):
    views = (layer.view(row, *cache.view_entries(i, row), scorer) for i, layer in enumerate(cache.evictable))
    return torch.stack([scorer.score(view) for view in views])


def prompt_of(ids, head=0):
    return Prompt(tuple(ids), SAYS.__getitem__, head, tail=(30, 31))


def after_passes(loaded, contexts, scorers, heads=None, **options):
    heads = heads or [0] * len(contexts)
    cache = compress(loaded, contexts, observe=scorers, **options)
    run_passes(loaded, cache, scorers, [prompt_of(c, h) for c, h in zip(contexts, heads, strict=True)])
    return cache


def test_the_passes_of_a_prompt():
    ids = tuple(range(40, 60))
    passes = KVzip(chunk=9).extra_passes(prompt_of(ids, head=1))
    assert [(p.start, p.end, p.sinks) for p in passes] == [(1, 10, 1), (10, 19, 4), (19, 20, 4)]
    assert passes[0].ids == (21, 22, 23, 30, 31, *range(41, 50))
    assert passes[1].ids == (24, 25, *range(42, 50), 30, 31, *range(50, 59))
    assert passes[2].ids == (24, 25, *range(51, 59), 30, 31, 59)


def test_the_passes_of_the_authors_form():
    """All of the head is seen; a chunk shorter than the overlap is said whole; the request has a blank behind it."""
    passes = KVzip(sink=0, chunk=3, keep_head=True).extra_passes(prompt_of(range(40, 50), head=5))
    assert [(p.start, p.end, p.sinks) for p in passes] == [(5, 8, 5), (8, 10, 5)]
    assert passes[1].ids == (24, 26, 45, 46, 47, 30, 31, 48, 49)


def test_a_prompt_within_one_chunk_and_one_without_text():
    assert len(KVzip().extra_passes(prompt_of(range(2048)))) == 1
    assert len(KVzip().extra_passes(prompt_of(range(2049)))) == 2
    assert KVzip().extra_passes(prompt_of(range(5), head=5)) == []
    with pytest.raises(ValueError, match="kvzip: chunk=0 must be at least 1"):
        KVzip(chunk=0)


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("qwen3", 3), ("gemma2", 2), ("llama", 6)])
@pytest.mark.parametrize("plus", [False, True])
def test_scores_are_those_of_the_definition(family, kv_heads, plus):
    loaded, context = small_model(family, kv_heads), text(1, 24)
    scorer = KVzipPlus(chunk=9) if plus else KVzip(chunk=9)
    wanted = [(p.start, p.end, list(p.ids)) for p in scorer.extra_passes(prompt_of(context, head=3))]
    assert len(wanted) == 3
    dense = by_definition(loaded, context, wanted, 4, plus)
    ours = scores_of(after_passes(loaded, [context], [scorer], [3]), scorer)
    torch.testing.assert_close(ours.double(), dense, rtol=1e-5, atol=1e-7)
    assert (ours[..., :3] == 0).all()
    assert (ours[..., 3:] > 0).all()


def test_the_authors_form_keeps_the_head_above_all_others():
    loaded, context = small_model("llama"), text(1, 20)
    scorer = KVzip(sink=0, chunk=9, keep_head=True)
    wanted = [(p.start, p.end, list(p.ids)) for p in scorer.extra_passes(prompt_of(context, head=6))]
    dense = by_definition(loaded, context, wanted, sinks=6)
    ours = scores_of(after_passes(loaded, [context], [scorer], [6]), scorer)
    torch.testing.assert_close(ours[..., 6:].double(), dense[..., 6:], rtol=1e-5, atol=1e-7)
    assert (ours[..., :6] > 1).all()


def test_rows_of_a_batch_are_scored_as_they_are_alone():
    """Other lengths, other numbers of passes, one row without any; the prompt in one piece or in chunks."""
    loaded = small_model("qwen2")
    contexts, heads = [text(1, 30), text(2, 7), text(3, 12), text(4, 3)], [2, 0, 1, 3]
    scorers = [KVzip(chunk=8), KVzipPlus(chunk=8)]
    together = after_passes(loaded, contexts, scorers, heads)
    pieces = after_passes(loaded, contexts, scorers, heads, chunk=5)
    for row, (context, head) in enumerate(zip(contexts, heads, strict=True)):
        alone = after_passes(loaded, [context], scorers, [head])
        for scorer in scorers:
            wanted = scores_of(alone, scorer)
            assert wanted.any() == (head < len(context))
            for cache in (together, pieces):
                torch.testing.assert_close(scores_of(cache, scorer, row), wanted, rtol=1e-6, atol=1e-9)
