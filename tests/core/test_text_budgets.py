"""scripts/studies/text_budgets.py: every way keeps exactly its budget, bounds are bounds, the page shows the data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lukv.budgets.solver import solve
from scripts.studies.text_budgets import PROTECTED, Chooser, Material, describe, find_lost, find_ways, share_out, study
from scripts.studies.text_contexts import Ranked
from tests.as_typed import ROOT

LAYERS, HEADS, TOKENS = 2, 2, 160
SCALES = np.array([[3.0, 0.2], [0.5, 1.0]])  # of each head's utility, which its scores do not know


def make_context(rng: np.random.Generator, lean: float, noise: float = 0.0) -> Ranked:
    """Utility is exp(score) times the head's scale and noise. `lean`: how much more the first layer is worth."""
    scores = rng.normal(size=(LAYERS, HEADS, TOKENS)) * 1.5
    scores[0] += lean
    scores.sort(axis=-1)
    scores = scores[..., ::-1].astype(np.float32)
    worth = np.exp(scores) * SCALES[..., None] * np.exp(noise * rng.normal(size=scores.shape))
    scores[..., :PROTECTED] = scores.max() + 1
    return Ranked(scores, worth.astype(np.float32))


def make_material(noise: float) -> Material:
    rng = np.random.default_rng(0)
    leans = {"needles": 1.0, "dialogue": 0.8, "essays": -1.0, "code": -0.8}
    fitted, held = (
        {k: [make_context(rng, lean, noise) for _ in range(n)] for k, lean in leans.items()} for n in (4, 6)
    )
    return Material(fitted, held)


@pytest.fixture(scope="module")
def noisy() -> Material:
    return make_material(noise=0.5)


def test_every_way_keeps_exactly_its_budget(noisy: Material) -> None:
    total = round(0.1 * LAYERS * HEADS * TOKENS)
    for way, count in find_ways(noisy, None).items():
        counts = count(0.1)
        assert all((n >= 0).all() and (n <= TOKENS).all() for n in counts), way
        sums = [int(n.sum()) for n in counts]
        if "threshold" in way:
            assert sum(sums) == total * len(sums), way
        else:
            assert sums == [total] * len(sums), way


def test_what_the_prompts_answer_says_is_the_least_that_can_be_lost(noisy: Material) -> None:
    ways = {way: count(0.1) for way, count in find_ways(noisy, None).items()}
    for number, context in enumerate(noisy.contexts):
        whole = float(context.worth.sum(dtype=np.float64))
        least = float(solve(context.worth.astype(np.float64), TOKENS, floor=0).lower_bound[89]) / whole  # 90% pruned
        best = find_lost(context, ways["bound: the best budgets of each prompt"][number])
        assert least - 1e-9 <= best <= least * 1.02
        exact = [counts[number] for way, counts in ways.items() if "threshold" not in way]
        assert all(find_lost(context, n) >= least - 1e-9 for n in exact)


def test_a_perfect_ranking_and_budget_lose_what_is_not_among_the_dearest(noisy: Material) -> None:
    found = study(noisy)["bound: the same, the best budgets of each prompt"]["0.2"]["lost"]
    count = round(0.2 * LAYERS * HEADS * TOKENS)
    dearest = [np.sort(c.worth.ravel())[-count:].sum() / c.worth.sum() for c in noisy.contexts]
    assert found == pytest.approx(1 - np.mean(dearest), abs=1e-6)


def test_prices_by_score_learn_the_scale_of_each_head() -> None:
    plain = make_material(noise=0.0)
    losses = {
        way: np.mean([find_lost(c, n) for c, n in zip(plain.contexts, count(0.1), strict=True)])
        for way, count in find_ways(plain, None).items()
    }
    best = losses["bound: the best budgets of each prompt"]
    assert losses["the prompt's budget, by what a score was worth"] < best + 0.01
    assert losses["the prompt's budget, by predicted utility"] > best + 0.03


def test_share_out_takes_the_dearest_of_all() -> None:
    prices = [np.array([[[5.0, 3.0, 1.0]], [[4.0, 4.0, 0.0]]]), np.array([[[9.0, 0.5]], [[2.0, 0.1]]])]
    assert [n.tolist() for n in share_out(prices, 5)] == [[[2], [2]], [[1], [0]]]
    assert [n.tolist() for n in share_out(prices, 10)] == [[[3], [3]], [[2], [2]]]


def test_the_chooser_knows_a_text_by_its_profile(noisy: Material) -> None:
    chooser = Chooser({"first": noisy.fitted["needles"], "second": noisy.fitted["essays"]})
    assert {chooser.choose(c) for c in noisy.held["needles"]} == {"first"}
    assert {chooser.choose(c) for c in noisy.held["essays"]} == {"second"}


def test_the_page_shows_the_data() -> None:
    found = json.loads((ROOT / "docs/data/smollm2-135m-q4-text-budgets.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/beyond.md").read_text(encoding="utf-8")
    assert "\n".join(describe(found["budgets"])) in page
