"""KVzip and KVzip+ against kvpress 0.5.5's KVzipPress, which ran in its own process on the same random weights.

Prompts are shorter than a chunk and of many chunks, without a chat template, with one that is shorter than the sinks,
and with a longer one. What may differ: kvpress keeps one entry more or less of all layers' entries (binary floats), so
kept sets are compared at its own total; where scores at the border are nearer to each other than the two programs'
scores of the same entry, either may stay.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from baselines.adakv import AdaKV
from baselines.global_topk import GlobalTopK
from baselines.kvzip import KVzip, KVzipPlus
from lukv.allocation import Budget
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import append, compress
from lukv.backend.passes import run_passes
from lukv.scoring import Prompt
from lukv.selection import Eviction, Protection
from tests.peers.peer_cases import HEADS, KVZIP, KVZIP_LENGTHS, KVZIP_RATIOS, MODELS, encode_text
from tests.peers.test_kvpress import near_tie

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

OURS = {
    "kvzip": (KVzip(), GlobalTopK()),
    "kvzip_chunks": (KVzip("kvzip_chunks", chunk=100), GlobalTopK()),
    "kvzip_plus": (KVzipPlus(chunk=100), GlobalTopK()),
    "kvzip_layerwise": (KVzip("kvzip_chunks", chunk=100), AdaKV(alpha=0)),
}


@pytest.fixture(scope="module")
def prompt(request, peers):
    """One prefill of one prompt by our backend with all passes, beside kvpress's results for it."""
    name, length, head = request.param
    model = AutoModelForCausalLM.from_pretrained(peers / name, dtype=torch.float32).eval()
    use_ragged_attention(model)
    theirs = np.load(peers / f"{name}-{length}-kvzip.npz", allow_pickle=False)
    ids = theirs[f"{head}/ids"].tolist()
    before, after = map(encode_text, HEADS[head])
    scorers = [scorer for scorer, _ in OURS.values()]
    cache = compress(model, [ids[:length]], observe=scorers)
    run_passes(model, cache, scorers, [Prompt(tuple(ids[:length]), encode_text, len(before), tuple(after))])
    return name, model, cache, {key.partition("/")[2]: theirs[key] for key in theirs if key.startswith(f"{head}/")}, ids


PROMPTS = [(model, length, head) for model in MODELS for length in KVZIP_LENGTHS for head in HEADS]


@pytest.mark.parametrize(
    "prompt",
    [pytest.param(p, id=f"{p[0]}-{p[1]}-{p[2] or 'no'} template") for p in PROMPTS],
    indirect=True,
    scope="module",
)
@pytest.mark.parametrize("method", KVZIP)
def test_kvzip(prompt, method, summary):
    name, model, cache, theirs, ids = prompt
    scorer, allocator = OURS[method]
    views = [layer.view(0, *cache.view_entries(i, 0), scorer) for i, layer in enumerate(cache.evictable)]
    scores = torch.stack([scorer.score(view) for view in views])
    for ratio in KVZIP_RATIOS:
        expected = {key: torch.from_numpy(theirs[f"{method}/{ratio}/{key}"]) for key in ("scores", "kept", "logits")}
        difference = (scores - expected["scores"]).abs()
        score = float((difference / expected["scores"].abs().amax((1, 2), keepdim=True)).max())
        assert score <= 1e-5
        counts = expected["kept"].sum(-1)
        budget = Budget(share=float(counts.sum()) / expected["kept"].numel())
        exact = Budget(share=round(1 - ratio, 10)).entries(scores.shape[-1], counts.numel())
        assert abs(exact - int(counts.sum())) <= (len(counts) if method == "kvzip_layerwise" else 1)
        eviction = Eviction(scorer, allocator, Protection(), budget)
        kept = torch.stack([rows[0] for rows in cache.select(eviction)])
        moved = kept != expected["kept"]
        assert not moved.any() or near_tie(scores[moved], difference)
        summary(
            name,
            method,
            heads=counts.numel(),
            ties=int(moved.any(-1).sum()),
            count_differs=int((kept.sum(-1) != counts).sum()),
            set_differs=0,
            score=score,
        )
        if not moved.any():
            logits = append(model, cache.fork_for(eviction), [ids[scores.shape[-1] :]])[0]
            logit = float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())
            assert logit <= 1e-4
            summary(name, method, logit=logit)
