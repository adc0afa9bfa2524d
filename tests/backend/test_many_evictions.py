"""Many evictions of one prefill as the rows of one batch, and rows that leave it."""

from __future__ import annotations

import pytest
import torch

from baselines.expected_attention import ExpectedAttention
from lukv.allocation import Budget, Uniform
from lukv.backend import generate
from lukv.backend.generate import answer, append, compress
from lukv.backend.options import Later
from lukv.selection import Eviction, Protection
from tests.backend.test_cache import LastQuery
from tests.reference.dense_reference import Noise, eviction, reference_logits, rows, tiny_model

FAMILIES = ("qwen2", "gemma3_text")
MODELS = {family: tiny_model(family, layers=2) for family in FAMILIES}
EVICTIONS = [eviction(0.1), eviction(0.4, scorer=LastQuery()), None, eviction(0.4)]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest):
    return MODELS[request.param]


def test_the_rows_are_those_of_separate_caches(model):
    prompts, questions = rows([60, 33, 41]), rows([5, 9, 2], seed=1)
    full = compress(model, prompts, observe=[LastQuery(), Noise()])
    many = full.fork([full.select(e) for e in EVICTIONS])
    after = [*rows([1, 4, 3], seed=2), *questions, *rows([7, 7, 7], seed=3), *rows([2, 1, 90], seed=4)]
    logits = append(model, many, after)
    for i, e in enumerate(EVICTIONS):
        alone = compress(model, prompts, eviction=e)
        mine = slice(i * len(prompts), (i + 1) * len(prompts))
        assert (many.kept_counts[:, mine] == alone.kept_counts).all()
        assert (append(model, alone, after[mine]) - logits[mine]).abs().max() <= 1e-9
        assert (many.row_nbytes[mine] == alone.row_nbytes).all()
        assert (many.full_row_nbytes[mine] == alone.full_row_nbytes).all()
        for row, prompt in enumerate(prompts):
            wanted = reference_logits(model, alone, row, prompt, after[mine][row])[-1]
            assert (logits[mine][row] - wanted).abs().max() <= 1e-9


def test_forks_that_are_evicted_while_they_answer_are_separate_caches(model):
    """Of one prefill: other scorers, sizes and intervals, and one that keeps everything; rows leave at any time."""
    prompts, questions = rows([60, 33, 41]), rows([5, 9, 2], seed=1)
    plans = [
        (eviction(0.4, scorer=LastQuery()), Later(eviction(0.2, scorer=LastQuery()), every=7)),
        (None, None),
        (eviction(1.0), Later(Eviction(Noise(), Uniform(), Protection(), Budget(tokens=9)), every=5)),
        (eviction(0.3), None),
    ]

    def stop(tokens):
        return len(tokens) > 14 + tokens[0] % 11

    def pick(logits):
        return (100 * logits).sin().argmax(-1)  # other tokens at the least difference

    full = compress(model, prompts, observe=[LastQuery(), Noise()], observe_heads=[LastQuery(), Noise()])
    many = full.fork([full.select(e) for e, _ in plans], later=[later for _, later in plans])
    said = answer(model, many, questions * len(plans), 40, stop=stop, pick=pick)
    assert len(set(map(len, said.tokens))) > 2
    for i, (first, later) in enumerate(plans):
        named = {} if later is None else {"later": later.eviction, "every": later.every}
        for row, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
            alone = answer(
                model, compress(model, [prompt], eviction=first, **named), [question], 40, stop=stop, pick=pick
            )
            mine = i * len(prompts) + row
            assert said.tokens[mine] == alone.tokens[0]
            told = [[(e.tokens, e.kept.tolist()) for e in each] for each in (said.evictions[mine], alone.evictions[0])]
            assert told[0] == told[1]
            assert bool(told[0]) is (later is not None)


def test_what_evicts_a_fork_was_shown_the_prompt(model):
    full = compress(model, rows([20]), observe_heads=[Noise()])
    with pytest.raises(ValueError, match=r"observe_heads=\[last_query\]"):
        full.fork([full.select(None)], later=[Later(eviction(0.2, scorer=LastQuery()), every=7)])
    plain = compress(model, rows([20]))
    with pytest.raises(ValueError, match=r"observe_heads="):
        plain.fork([plain.select(None)], later=[Later(eviction(0.2), every=7)])


def test_some_rows_go_on_alone(model):
    """Also in another order, and back to the state after the prompt."""
    prompts, question, more = rows([60, 33, 41]), rows([5, 9, 2], seed=1), rows([3, 80], seed=2)
    cache = compress(model, prompts, eviction=eviction(0.3))
    before = cache.kept_counts
    append(model, cache, question)
    some = cache.select_rows([2, 0])
    logits = append(model, some, more)
    for got, row, new in zip(logits, (2, 0), more, strict=True):
        wanted = reference_logits(model, cache, row, prompts[row], question[row] + new)[-1]
        assert (got - wanted).abs().max() <= 1e-9
    some.rollback()
    assert (some.kept_counts == before[:, [2, 0]]).all()
    again = append(model, some, more)
    wanted = reference_logits(model, cache, 0, prompts[0], more[1])[-1]
    assert (again[1] - wanted).abs().max() <= 1e-9
    assert cache.tokens.tolist() == [65, 42, 43]  # the first cache is as it was


def test_answers_do_not_depend_on_who_leaves(model, monkeypatch):
    """Rows end after different numbers of tokens; whether they leave at once, late or never, all say the same."""
    prompts, questions = rows([30, 44, 25, 51]), rows([3, 6, 2, 4], seed=1)
    cache = compress(model, prompts, eviction=eviction(0.5))
    seen = {}
    sizes = []

    def stop(tokens):
        return len(tokens) > 4 + tokens[0] % 11

    def watch(module, args, inputs):
        sizes.append(len(inputs["input_ids"]))

    watching = model.register_forward_pre_hook(watch, with_kwargs=True)
    for staying in (0.0, 0.5, 1.0):
        monkeypatch.setattr(generate, "SHRINK_AT", staying)
        seen[staying] = answer(model, cache, questions, 40, stop=stop).tokens
        cache.rollback()
        if staying == 0.0:
            assert set(sizes) == {4}
    watching.remove()
    assert seen[0.0] == seen[0.5] == seen[1.0]
    assert len(set(map(len, seen[0.0]))) > 1
    assert min(sizes) < 4
    for prompt, question, said in zip(prompts, questions, seen[0.0], strict=True):
        alone = compress(model, [prompt], eviction=eviction(0.5))
        assert answer(model, alone, [question], 40, stop=stop).tokens == [said]


def test_scores_are_computed_once_for_all_budgets(model):
    calls = []

    class Counted(Noise):
        def score(self, layer):
            calls.append(layer.index)
            return super().score(layer)

    scorer = Counted()
    full = compress(model, rows([30, 20]))
    layers = len(full.evictable)
    for share in (0.1, 0.5, 0.9):
        full.select(eviction(share, scorer=scorer))
    assert len(calls) == layers * 2


@pytest.mark.parametrize("fresh", [20, 60], ids=["short after long", "long after short"])
def test_angles_are_those_of_the_cached_row_and_not_of_the_last_one(fresh):
    """longrope takes other angles past 40 tokens: a scorer that rotates must not find those of another prompt."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope["original_max_position_embeddings"] = 40
    positions = {"max_position_embeddings": 160, "original_max_position_embeddings": 40}
    model = tiny_model("phi3", layers=2, rope_parameters=rope, **positions)
    scorer = ExpectedAttention()
    wanted = Eviction(scorer, Uniform(), Protection(), Budget(share=0.5))
    prompt = rows([80 - fresh])
    cache = compress(model, prompt, observe=[scorer])
    compress(model, rows([fresh], seed=1))
    late, alone = cache.fork_for(wanted), compress(model, prompt, eviction=wanted)
    for head, (ours, theirs) in enumerate(zip(late.state().layers, alone.state().layers, strict=True)):
        assert torch.equal(ours.positions, theirs.positions), head
