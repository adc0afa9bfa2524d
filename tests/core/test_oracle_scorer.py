"""The oracle as a scorer: each question's cache keeps what the dense definition of utility says, in every head."""

from __future__ import annotations

import pytest
import torch

from baselines.adakv import AdaKV
from baselines.keydiff import KeyDiff
from baselines.oracle import Oracle as OracleScorer
from baselines.random import Random
from lukv.allocation import Budget, Uniform
from lukv.backend.generate import append, compress
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.selection import Eviction, Protection
from tests.core.small_models import small_model, text
from tests.core.test_oracle import by_definition, greedy

STEPS = 6
PROTECTION = Protection(sink=4, recent=1)


def kept(cache, row=0):
    """[layer][head] -> set of positions."""
    layers = range(len(cache.evictable))
    return [[set(positions.tolist()) for positions in cache.find_positions(layer, row)] for layer in layers]


def evicted(full, eviction, utilities):
    return full.fork([full.select(eviction, utilities)])


def best_by_definition(utility, counts, protection):
    """The protected tokens, then those of the highest utility, one head at a time."""
    tokens = utility.shape[-1]
    protected = [*range(protection.sink), *range(tokens - 1, tokens - 1 - protection.recent, -1)]
    out = []
    for layer, layer_counts in zip(utility, counts, strict=True):
        heads = []
        for row, count in zip(layer.tolist(), layer_counts, strict=True):
            free = sorted(set(range(tokens)) - set(protected), key=lambda t, row=row: -row[t])
            heads.append(set([*protected, *free][: int(count)]))
        out.append(heads)
    return out


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("allocator", [Uniform(), AdaKV()], ids=lambda a: type(a).__name__)
def test_each_question_keeps_what_its_answer_needs(family, allocator):
    loaded, context = small_model(family), text(1, 70)
    full = compress(loaded.model, [context])
    measured = UtilityOracle(loaded, OracleSettings(horizon=STEPS)).prefill(context)
    eviction = Eviction(OracleScorer(), allocator, PROTECTION, Budget(share=0.3))
    sets = []
    for question in (text(2, 9), text(3, 1)):
        cache = evicted(full, eviction, [measured.utility(question)])
        dense = by_definition(loaded, context, question, greedy(loaded, context + question, STEPS))
        assert cache.kept_counts.sum(axis=(1, 2)).tolist() == [42] * 3  # 0.3 of 2 x 70
        sets.append(kept(cache))
        assert sets[-1] == best_by_definition(dense, cache.kept_counts[:, 0], PROTECTION)
        append(loaded.model, cache, [question])
    assert sets[0] != sets[1]


def test_rows_of_a_batch_have_utilities_of_their_own():
    loaded, contexts, question = small_model("qwen2"), [text(1, 50), text(2, 31)], text(3, 4)
    oracle = UtilityOracle(loaded, OracleSettings(horizon=STEPS))
    utilities = [oracle.prefill(context).utility(question) for context in contexts]
    eviction = Eviction(OracleScorer(), Uniform(), PROTECTION, Budget(share=0.4))
    together = evicted(compress(loaded.model, contexts), eviction, utilities)
    for row, (context, utility) in enumerate(zip(contexts, utilities, strict=True)):
        alone = evicted(compress(loaded.model, [context]), eviction, [utility])
        assert kept(together, row) == kept(alone)


def test_sliding_layers_are_left_as_they_are():
    loaded = small_model(
        "gemma2", layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=20
    )
    context, question = text(1, 40), text(2, 3)
    utility = UtilityOracle(loaded, OracleSettings(horizon=STEPS)).prefill(context).utility(question)
    eviction = Eviction(OracleScorer(), Uniform(), PROTECTION, Budget(share=0.5))
    cache = evicted(compress(loaded.model, [context]), eviction, [utility])
    assert kept(cache) == best_by_definition(utility, cache.kept_counts[:, 0], PROTECTION)


def test_no_other_ranking_keeps_more_utility():
    loaded, context, question = small_model("llama"), text(1, 80), text(2, 5)
    measured = UtilityOracle(loaded, OracleSettings(horizon=STEPS)).prefill(context)
    utility, full = measured.utility(question), compress(loaded.model, [context])

    def retained(scorer):
        eviction = Eviction(scorer, Uniform(), PROTECTION, Budget(share=0.3))
        sets = kept(evicted(full, eviction, [utility] if scorer.needs_utility else None))
        return torch.tensor(
            [[float(utility[i, k, sorted(s)].sum()) for k, s in enumerate(heads)] for i, heads in enumerate(sets)]
        )

    most = retained(OracleScorer())
    for scorer in (KeyDiff(), Random()):
        assert (retained(scorer) <= most).all()
        assert (retained(scorer) < most).any()


def test_utilities_that_are_missing_or_of_another_prompt():
    model = small_model("llama").model
    eviction = Eviction(OracleScorer(), Uniform(), PROTECTION, Budget(share=0.3))
    with pytest.raises(ValueError, match="scorer oracle: no utility of layer 0 is given; job=evaluate measures it"):
        compress(model, [text(1, 30)], eviction=eviction)
    full = compress(model, [text(1, 30)])
    with pytest.raises(ValueError, match=r"the utility of layer 0 is \[2, 31\], the prompt has \[2, 30\]"):
        full.select(eviction, [torch.zeros(3, 2, 31)])
    with pytest.raises(ValueError, match="observed is given for 2 sequences, this cache holds 1"):
        full.select(eviction, [torch.zeros(3, 2, 30)] * 2)
    with pytest.raises(ValueError, match="scorer oracle: a score is NaN or infinite"):
        full.select(eviction, [torch.full((3, 2, 30), torch.nan)])
