"""Every method keeps exactly what the budget says, in prompts of any length; on the backend, too."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForCausalLM

from lukv.allocation import Budget
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import append, compress
from lukv.backend.passes import run_passes
from lukv.scoring import Prompt, PromptLayer
from lukv.selection import Eviction
from tests.baselines.conftest import CONF

LAYERS, KV_HEADS, QUERY_HEADS, DIM = 3, 2, 4, 8
BUDGETS = [Budget(share=0.01), Budget(share=0.2), Budget(share=0.55), Budget(share=1.0), Budget(tokens=7)]


@pytest.fixture
def evictions(build, any_method):
    """The method at each of BUDGETS."""
    chosen = {}
    for entry in OmegaConf.load(CONF / "method" / f"{any_method}.yaml").defaults:
        ((key, option),) = entry.items()
        chosen[key.removeprefix("override /")] = option
    if chosen["scorer"] is None:
        pytest.skip("keeps everything")
    parts = build(layers=LAYERS, kv_heads=KV_HEADS, head_dim=DIM, **chosen)
    return [Eviction(*parts, budget) for budget in BUDGETS]


@cache
def prompt(index, tokens):
    """A made-up layer, with ties: keys, values and queries are rounded."""
    generator = torch.Generator().manual_seed(100 * tokens + index)
    shapes = (KV_HEADS, tokens, DIM), (KV_HEADS, tokens, DIM), (QUERY_HEADS, tokens, DIM)
    keys, values, queries = (torch.randn(shape, generator=generator).round() for shape in shapes)
    output = torch.randn(QUERY_HEADS * DIM, QUERY_HEADS * DIM, generator=generator)
    return PromptLayer(index, LAYERS, keys, values, QUERY_HEADS, DIM**-0.5, output=output), queries


def test_totals_are_exact_for_every_length(evictions):
    scorer = evictions[0].scorer
    for tokens in [*range(1, 81), 129, 256]:
        layers = []
        for index in range(LAYERS):
            layer, queries = prompt(index, tokens)
            observed = scorer.observe(None, queries, 0, None)
            layers.append(PromptLayer(**{**vars(layer), "observed": observed}))
        for eviction in evictions:
            kept = [int(mask.sum()) for mask in eviction.select([eviction.rank(layer) for layer in layers])]
            each = eviction.budget.entries(tokens, KV_HEADS)
            together = eviction.budget.entries(tokens, KV_HEADS * LAYERS)
            assert kept == [each] * LAYERS or sum(kept) == together, (tokens, eviction.budget)


def test_one_token_and_short_prompts_in_one_batch_on_the_backend(evictions):
    """Prompts of one token, shorter than every window, and longer; what is left can be asked."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=QUERY_HEADS,
        num_key_value_heads=KV_HEADS, pad_token_id=None, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    use_ragged_attention(model)
    lengths = [1, 2, 9, 70]
    rows = [torch.arange(n).remainder(50).tolist() for n in lengths]
    full = compress(model, rows, observe=[evictions[0].scorer])
    prompts = [Prompt(tuple(row), lambda text: [1, 2], head=int(len(row) == 2), tail=(3,)) for row in rows]
    run_passes(model, full, [evictions[0].scorer], prompts)
    for eviction in evictions:
        cache = full.fork_for(eviction)
        for row, tokens in enumerate(lengths):
            kept = cache.kept_counts[:, row].sum(1)
            each = eviction.budget.entries(tokens, KV_HEADS)
            assert kept.tolist() == [each] * LAYERS or kept.sum() == eviction.budget.entries(tokens, KV_HEADS * LAYERS)
        logits = append(model, cache, [[3, 4]] * len(rows))
        assert logits.isfinite().all()
