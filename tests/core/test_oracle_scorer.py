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
from lukv.backend.passes import run_passes
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.scoring import Prompt
from lukv.selection import Eviction, Protection
from tests.core.small_models import small_model, text
from tests.core.test_oracle import by_definition, greedy

STEPS = 6
PROTECTION = Protection(sink=4, recent=1)


def kept(cache, row=0):
    """[layer][head] -> set of positions."""
    layers = range(len(cache.evictable))
    return [[set(positions.tolist()) for positions in cache.find_positions(layer, row)] for layer in layers]


def evicted(loaded, contexts, eviction, questions):
    """The prompts as the oracle evicts them, each for its question and the greedy answer to it."""
    full = compress(loaded, contexts, observe=[eviction.scorer])
    answers = [greedy(loaded, c + q, STEPS) for c, q in zip(contexts, questions, strict=True)]
    each = zip(contexts, questions, answers, strict=True)
    prompts = [Prompt(tuple(c), list, question=tuple(q), answer=tuple(a)) for c, q, a in each]
    run_passes(loaded, full, [eviction.scorer], prompts)
    return full.fork_for(eviction)


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
    eviction = Eviction(OracleScorer(), allocator, PROTECTION, Budget(share=0.3))
    sets = []
    for question in (text(2, 9), text(3, 1)):
        cache = evicted(loaded, [context], eviction, [question])
        dense = by_definition(loaded, context, question, greedy(loaded, context + question, STEPS))
        assert cache.kept_counts.sum(axis=(1, 2)).tolist() == [42] * 3  # 0.3 of 2 x 70
        sets.append(kept(cache))
        assert sets[-1] == best_by_definition(dense, cache.kept_counts[:, 0], PROTECTION)
        append(loaded.model, cache, [question])
    assert sets[0] != sets[1]


def test_rows_of_a_batch_have_utilities_of_their_own():
    loaded, contexts, questions = small_model("qwen2"), [text(1, 50), text(2, 31)], [text(3, 4), text(4, 9)]
    eviction = Eviction(OracleScorer(), Uniform(), PROTECTION, Budget(share=0.4))
    together = evicted(loaded, contexts, eviction, questions)
    for row, (context, question) in enumerate(zip(contexts, questions, strict=True)):
        alone = evicted(loaded, [context], eviction, [question])
        assert kept(together, row) == kept(alone)


def test_sliding_layers_are_left_as_they_are():
    loaded = small_model(
        "gemma2", layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=20
    )
    context, question = text(1, 40), text(2, 3)
    utility = UtilityOracle(loaded, OracleSettings(horizon=STEPS)).prefill(context).utility(question)
    eviction = Eviction(OracleScorer(), Uniform(), PROTECTION, Budget(share=0.5))
    cache = evicted(loaded, [context], eviction, [question])
    assert kept(cache) == best_by_definition(utility, cache.kept_counts[:, 0], PROTECTION)


def test_no_other_ranking_keeps_more_utility():
    loaded, context, question = small_model("llama"), text(1, 80), text(2, 5)
    measured = UtilityOracle(loaded, OracleSettings(horizon=STEPS)).prefill(context)
    utility, full = measured.utility(question), compress(loaded, [context])

    def retained(scorer):
        eviction = Eviction(scorer, Uniform(), PROTECTION, Budget(share=0.3))
        known = scorer.needs_answer
        sets = kept(evicted(loaded, [context], eviction, [question]) if known else full.fork_for(eviction))
        return torch.tensor(
            [[float(utility[i, k, sorted(s)].sum()) for k, s in enumerate(heads)] for i, heads in enumerate(sets)]
        )

    most = retained(OracleScorer())
    for scorer in (KeyDiff(), Random()):
        assert (retained(scorer) <= most).all()
        assert (retained(scorer) < most).any()


def test_the_scorers_own_pass_measures_what_the_oracle_measures():
    """One reads the answer behind the question in one forward, the other decodes it."""
    loaded, context, question = small_model("qwen3"), text(1, 60), text(2, 5)
    utility = UtilityOracle(loaded, OracleSettings(horizon=STEPS)).prefill(context).utility(question)
    full = compress(loaded, [context], observe=[OracleScorer()])
    answer = greedy(loaded, context + question, STEPS)
    prompt = Prompt(tuple(context), list, question=tuple(question), answer=tuple(answer))
    run_passes(loaded, full, [OracleScorer()], [prompt])
    for index, layer in enumerate(full.evictable):
        view = layer.view(0, *full.view_entries(index, 0), OracleScorer())
        torch.testing.assert_close(OracleScorer().score(view), utility[index].float())


def test_an_answer_that_is_missing():
    loaded, context = small_model("llama"), text(1, 30)
    eviction = Eviction(OracleScorer(), Uniform(), PROTECTION, Budget(share=0.3))
    unknown = [Prompt(tuple(context), list)]
    with pytest.raises(ValueError, match="scorer oracle has to know the answer: job=evaluate lets the full cache give"):
        compress(loaded, [context], eviction=eviction, prompts=unknown)
    full = compress(loaded, [context], observe=[OracleScorer()])
    with pytest.raises(ValueError, match=r"oracle asks for extra passes: run_passes\(model, cache, \[oracle\]"):
        full.select(eviction)
