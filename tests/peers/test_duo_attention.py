"""DuoAttention with patterns found on the fly against kvpress 0.5.5, which got the prompt as its one book chapter.

It fixes the number of streaming heads, so both are compared at the budget that its number comes to. There the same
heads must be streaming heads, to the last entry.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from baselines.duo_attention import DuoAttention
from baselines.global_topk import GlobalTopK
from lukv.allocation import Budget
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import append, compress
from lukv.selection import Eviction, Protection
from tests.peers.peer_cases import DUO, LENGTHS, MODELS, RATIOS

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
def test_duo_attention(name, length, peers, summary):
    model = AutoModelForCausalLM.from_pretrained(peers / name, dtype=torch.float32).eval()
    use_ragged_attention(model)
    theirs = np.load(peers / f"{name}-{length}.npz", allow_pickle=False)
    ids, scorer = theirs["ids"].tolist(), DuoAttention(**DUO)
    cache = compress(model, [ids[:length]], observe=[scorer])
    views = [layer.view(0, *cache.view_entries(i, 0), scorer) for i, layer in enumerate(cache.evictable)]
    scores = torch.stack([scorer.score(view)[:, 0] for view in views])
    for ratio in RATIOS:
        expected = {
            key: torch.from_numpy(theirs[f"duo_attention/{ratio}/{key}"]) for key in ("scores", "kept", "logits")
        }
        score = float(((scores - expected["scores"]) / expected["scores"]).abs().max())
        assert score <= 1e-5
        budget = Budget(share=float(expected["kept"].double().mean()))
        eviction = Eviction(scorer, GlobalTopK(), Protection(), budget)
        kept = torch.stack([rows[0] for rows in cache.select(eviction)])
        assert torch.equal(kept, expected["kept"])
        logits = append(model, cache.fork_for(eviction), [ids[length:]])[0]
        logit = float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())
        assert logit <= 1e-4
        summary(
            name,
            "duo_attention",
            heads=kept.shape[0] * kept.shape[1],
            ties=0,
            count_differs=0,
            set_differs=0,
            score=score,
            logit=logit,
        )
