"""FINCH against plain loops over dense float64 attention, and through a batch whose questions differ in length."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baselines.finch import Finch
from lukv.allocation import Budget, Uniform
from lukv.backend.generate import compress
from lukv.selection import Eviction, Protection
from tests.baselines.test_attention_scorers import dense, prompt, score
from tests.reference.dense_reference import rows, tiny_model


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("question", [1, 7, 29])
def test_it_is_the_questions_attention_evened_out(question, softcap):
    queries, layer = prompt(30, softcap=softcap)
    probabilities = dense(queries, layer)
    found = score(Finch(), queries, replace(layer, question=question), cuts=(1, 12))
    before = 30 - question
    for head in range(2):
        for token in range(before):
            seen = [
                row * float(probabilities[h, row, token])
                for h in range(3 * head, 3 * head + 3)
                for row in range(before, 30)
            ]
            assert float(found[head, token]) == pytest.approx(sum(seen) / len(seen), rel=1e-5)
    assert (found[:, before:] > found[:, :before].max()).all()


@pytest.mark.parametrize("question", [0, 5])
def test_a_prompt_that_is_all_or_no_question_has_equal_scores(question):
    queries, layer = prompt(5)
    assert len(set(score(Finch(), queries, replace(layer, question=question)).flatten().tolist())) == 1


def test_without_the_question_it_is_refused_in_one_line():
    queries, layer = prompt(5)
    with pytest.raises(ValueError, match=r"finch looks from the question, .* compress\(\.\.\., questions="):
        score(Finch(), queries, layer)
    with pytest.raises(ValueError, match="looks from the question"):
        compress(
            tiny_model("qwen2", layers=2), rows([9]), eviction=Eviction(Finch(), Uniform(), Protection(), Budget(0.5))
        )


def test_each_row_of_a_batch_has_its_own_question():
    model = tiny_model("qwen2", layers=2)
    eviction = Eviction(Finch(), Uniform(), Protection(), Budget(tokens=11))
    batch, questions = rows([40, 23, 31]), [5, 9, 1]
    together = compress(model, batch, eviction=eviction, questions=questions)
    whole = compress(model, batch, observe=[Finch()], questions=questions)
    shared = whole.select_rows([2, 0, 1]).fork_for(eviction)
    for row, question in enumerate(questions):
        alone = compress(model, [batch[row]], eviction=eviction, questions=[question], chunk=7)
        for layer in range(2):
            expected = [p.tolist() for p in alone.find_positions(layer, 0)]
            assert [p.tolist() for p in together.find_positions(layer, row)] == expected
            assert [p.tolist() for p in shared.find_positions(layer, (row + 1) % 3)] == expected
            asked = set(range(len(batch[row]) - question, len(batch[row])))
            assert all(asked <= set(positions) for positions in expected)
