"""check_method: the contract that every scorer and allocator must meet, checked on synthetic prompts in seconds.

    from lukv.contract import check_method
    check_method(MyScorer(), Uniform())

It needs no model. A method that passes runs on the backend with any model, batch and prompt length.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores
from lukv.scoring import PassLayer, Prompt, PromptLayer, Scorer
from lukv.selection import Eviction, Protection, protect

BUDGETS = (Budget(share=0.05), Budget(share=0.2), Budget(share=0.5), Budget(share=1.0), Budget(tokens=7))


class ContractError(AssertionError):
    """A scorer or an allocator breaks the contract."""


def check_method(
    scorer: Scorer,
    allocator: Allocator,
    protection: Protection = Protection(),  # noqa: B008 - frozen
    *,
    layers: int = 3,
    kv_heads: int = 2,
    query_heads: int = 4,
    head_dim: int = 16,
) -> None:
    """Raise ContractError, saying what is wrong, unless scorer x allocator meets the contract:

    * scores are [K, T] float32, finite, on the keys' device, and the same each time; the inputs are not changed;
    * scores do not depend on how `observe` gets the prompt in chunks, nor on other prompts in between;
    * the same extra passes are asked for each time, and `observe_pass` changes nothing that it is given;
    * prompts of one token, prompts that are all protected, prompts of equal keys, and bfloat16 work;
    * counts are [K] int64 on the CPU, each from 0 to T, the same each time and in any order of layers;
    * each layer keeps exactly `budget.entries(T, K)`, or all layers together `budget.entries(T, layers * K)`, unless
      the allocator says that it is not `exact`.

    `layers`, `kv_heads`, `query_heads` and `head_dim` are the synthetic prompts' geometry. A budget table belongs to
    one geometry: give its `layers` and `kv_heads`.
    """
    shielded = protection.over(scorer)
    lengths = {1, 2, 5, shielded.sink + 1, shielded.sink + shielded.recent + 1, 70, 150}
    for kind, tokens in [*(("random", n) for n in sorted(lengths)), ("equal", 70), ("bfloat16", 70)]:
        prompt = [_make_prompt(kind, index, layers, kv_heads, query_heads, tokens, head_dim) for index in range(layers)]
        where = f"{tokens} {kind} tokens"
        _check_scorer(scorer, *prompt[-1], where)
        observed = [_observe(scorer, layer, queries) for queries, layer in prompt]
        scores = torch.stack([scorer.score(layer) for layer in observed])
        for budget in BUDGETS:
            counts = _check_counts(allocator, budget, scores, shielded, where)
        eviction = Eviction(scorer, allocator, protection, BUDGETS[-1])
        kept = eviction.select([eviction.rank(layer) for layer in observed])[-1]
        _require(torch.equal(kept.sum(-1), counts[-1]), f"{where}: other counts on the same scores")
    for tokens in (1, 70):
        for budget in BUDGETS:
            _check_counts(allocator, budget, torch.zeros(layers, kv_heads, tokens), shielded, f"{tokens} equal scores")


def rope(positions: Tensor, dims: int = 16) -> tuple[Tensor, Tensor]:
    """The plain rotary embedding of the synthetic prompts: (cos, sin), each [n, dims]."""
    angle = positions[:, None] * 10000.0 ** (-torch.arange(0, dims, 2, device=positions.device) / dims)
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def _make_prompt(
    kind: str, index: int, layers: int, kv_heads: int, query_heads: int, tokens: int, dim: int
) -> tuple[Tensor, PromptLayer]:
    generator = torch.Generator().manual_seed(1000 * tokens + index)
    shapes = (query_heads, tokens, dim), (kv_heads, tokens, dim), (kv_heads, tokens, dim)
    queries, keys, values = (torch.randn(shape, generator=generator) for shape in shapes)
    if kind == "equal":
        keys, values = keys[:, :1].expand_as(keys).clone(), values[:, :1].expand_as(values).clone()
    if kind == "bfloat16":
        queries, keys, values = queries.bfloat16(), keys.bfloat16(), values.bfloat16()
    turn = dim // 2 * 2
    return queries, PromptLayer(
        index,
        layers,
        keys,
        values,
        query_heads,
        dim**-0.5,
        rope=lambda positions: rope(positions, turn),
        output=torch.randn(query_heads * dim, query_heads * dim, generator=generator).to(keys.dtype),
        question=min(5, tokens),
    )


def _observe(scorer: Scorer, layer: PromptLayer, queries: Tensor, cuts: Sequence[int] = ()) -> PromptLayer:
    """The layer after the scorer has observed its queries, in chunks that end at `cuts`."""
    observed: Any = None
    edges = [0, *(cut for cut in cuts if cut < queries.shape[1]), queries.shape[1]]
    for start, end in pairwise(edges):
        observed = scorer.observe(observed, queries[:, start:end], start, layer.rope)
    for seen in _make_passes(scorer, layer):
        before = [x.clone() for x in (seen.queries, seen.keys, seen.values)], copy.deepcopy(observed)
        earlier, observed = observed, scorer.observe_pass(observed, seen)
        same = all(torch.equal(x, y) for x, y in zip(before[0], (seen.queries, seen.keys, seen.values), strict=True))
        same &= not isinstance(earlier, Tensor) or torch.equal(earlier, before[1])
        _require(same, f"scorer {scorer.name}: observe_pass writes into its inputs")
    return replace(layer, observed=observed)


def _make_passes(scorer: Scorer, layer: PromptLayer) -> list[PassLayer]:
    """What the layer shows of the extra passes that a scorer asks for: a prompt with a head of one token, if it is
    longer."""
    tokens = layer.tokens
    prompt = Prompt(tuple(range(tokens)), lambda text: [5, 6, 7], int(tokens > 1), (8, 9), (10, 11), (12, 13, 14))
    asked = scorer.extra_passes(prompt)
    who = f"scorer {scorer.name or type(scorer).__name__}"
    _require(list(asked) == list(scorer.extra_passes(prompt)), f"{who}: it asks for other passes each time")
    passes = []
    for number, each in enumerate(asked):
        _require(len(each.ids) > 0, f"{who}: an extra pass needs at least one token")
        generator = torch.Generator().manual_seed(100 * tokens + 10 * layer.index + number)

        def draw(like: Tensor, heads: int, count: int = len(each.ids), by: torch.Generator = generator) -> Tensor:
            return torch.randn(heads, count, like.shape[-1], generator=by).to(like)

        def weigh(values: Tensor) -> Tensor:
            return values.float().norm(dim=-1).repeat_interleave(layer.query_heads // len(values), 0)

        keys, values = (torch.cat([x, draw(x, len(x))], 1) for x in (layer.keys, layer.values))
        about = each, layer.index, layer.layers, tokens, draw(layer.keys, layer.query_heads), keys, values
        hidden = draw(layer.keys, 1)[0] if scorer.needs_hidden else None
        passes.append(PassLayer(*about, layer.scale, layer.softcap, weigh if scorer.needs_output else None, hidden))
    return passes


def _check_scorer(scorer: Scorer, queries: Tensor, layer: PromptLayer, where: str) -> None:
    who = f"scorer {scorer.name or type(scorer).__name__} ({where})"
    heads, tokens = layer.keys.shape[:2]
    before = [x.clone() for x in (queries, layer.keys, layer.values)]
    whole = _observe(scorer, layer, queries)
    scores = scorer.score(whole)
    _require(scores.shape == (heads, tokens), f"{who}: scores are {list(scores.shape)}, not [K, T] = {[heads, tokens]}")
    _require(scores.dtype == torch.float32, f"{who}: scores are {scores.dtype}, not float32")
    _require(scores.device == layer.keys.device, f"{who}: scores are on {scores.device}, not on the keys' device")
    _require(bool(torch.isfinite(scores).all()), f"{who}: a score is NaN or infinite")
    first = scores.clone()
    other = replace(layer, keys=layer.keys.flip(1), values=layer.values.flip(1))
    scorer.score(_observe(scorer, other, queries.flip(1)))
    same = all(torch.equal(x, y) for x, y in zip(before, (queries, layer.keys, layer.values), strict=True))
    _require(same, f"{who}: it writes into its inputs")
    _require(torch.equal(scorer.score(whole), first), f"{who}: scoring the same prompt again gives other scores")
    _require(torch.equal(scorer.score(_observe(scorer, layer, queries)), first), f"{who}: it remembers other prompts")
    for cuts in ((1,), (3, 4), range(0, tokens, 32)):
        chunked = scorer.score(_observe(scorer, layer, queries, [c for c in cuts if c]))
        close = torch.allclose(chunked, first, rtol=1e-5, atol=1e-6 * float(first.abs().max()))
        _require(close, f"{who}: scores depend on how the prompt was cut into chunks (cuts {list(cuts)})")


def _check_counts(
    allocator: Allocator, budget: Budget, scores: Tensor, protection: Protection, where: str
) -> list[Tensor]:
    """The counts [K] of each layer, for scores [layers, K, T]."""
    layers, heads, tokens = scores.shape
    protected = protection.mask(tokens)
    who = f"{type(allocator).__name__} ({where}, {budget})"

    def counts(some: Sequence[int]) -> list[Tensor]:
        raised = [protect(scores[layer], protection) for layer in some]
        before = [each.clone() for each in raised]
        heads = [HeadScores(each, protected, layer, layers) for each, layer in zip(raised, some, strict=True)]
        result = allocator.counts_of_layers(budget, heads)
        same = all(torch.equal(x, y) for x, y in zip(raised, before, strict=True))
        _require(same, f"{who}: it writes into the scores")
        return result

    result = counts(range(layers))
    _require(len(result) == layers, f"{who}: counts of {len(result)} layers, not of {layers}")
    for count in result:
        _require(
            count.shape == (heads,) and count.dtype == torch.int64,
            f"{who}: counts {list(count.shape)} {count.dtype} are not [K] = [{heads}] int64",
        )
        _require(count.device.type == "cpu", f"{who}: counts must be on the CPU")
        within = bool(((count >= 0) & (count <= tokens)).all())
        _require(within, f"{who}: {count.tolist()} not within 0..{tokens}")
    each, together = budget.entries(tokens, heads), budget.entries(tokens, layers * heads)
    kept = [int(count.sum()) for count in result]
    _require(
        not allocator.exact or kept == [each] * layers or sum(kept) == together,
        f"{who}: layers keep {kept}: neither {each} each, nor {together} together",
    )
    if allocator.compares_layers:
        again = counts(range(layers))
    else:
        again = [counts([layer])[0] for layer in reversed(range(layers))][::-1]
    same = all(torch.equal(x, y) for x, y in zip(result, again, strict=True))
    _require(same, f"{who}: counts change when asked again, or in another order of layers")
    return result


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ContractError(message)
