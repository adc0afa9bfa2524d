"""The solver against a plain hull and heap in exact arithmetic, and against dynamic programming."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.budgets.solver import floor_of, hulls, kept_total, solve
from tests.reference.plain_solver import hull_vertices, loss_curve, plain_solve


def plain(utility, tokens, floor, scope="global"):
    """What `solve` must return, from the plain solver in Fractions: kept, loss, lower bound."""
    layers, heads, _ = utility.shape
    exact = [[[Fraction(float(x)) for x in head] for head in layer] for layer in utility]
    groups = [[head for layer in exact for head in layer]] if scope == "global" else exact
    kept, loss, bound = [], [Fraction(0)] * 99, [Fraction(0)] * 99
    for group in groups:
        entries = len(group) * tokens
        targets = [min(entries - int(total), len(group) * (tokens - floor)) for total in kept_total(entries)]
        counts, upper, lower = plain_solve(group, tokens - floor, targets)
        kept.append(tokens - np.array(counts))
        loss = [a + b for a, b in zip(loss, upper, strict=True)]
        bound = [a + b for a, b in zip(bound, lower, strict=True)]
    return np.concatenate(kept, axis=1).reshape(99, layers, heads), loss, bound


def assert_equals_plain(utility, tokens, floor=None, scope="global"):
    floor = floor_of(tokens, tokens - utility.shape[2]) if floor is None else floor
    ours = solve(utility, tokens, floor, scope)
    kept, loss, bound = plain(utility, tokens, floor, scope)
    np.testing.assert_array_equal(ours.kept, kept)
    np.testing.assert_allclose(ours.loss, np.array(loss, dtype=float), rtol=1e-12)
    np.testing.assert_allclose(ours.lower_bound, np.array(bound, dtype=float), rtol=1e-12)


RANDOM = {
    "exponential": lambda r, shape: r.exponential(size=shape),
    "heavy tailed": lambda r, shape: r.pareto(0.7, size=shape),
    "attention like": lambda r, shape: r.lognormal(0, 3, size=shape) / np.arange(1, shape[-1] + 1),
    "ranked perfectly": lambda r, shape: -np.sort(-r.exponential(size=shape)),
    "ranked upside down": lambda r, shape: np.sort(r.exponential(size=shape)),
    "sparse": lambda r, shape: r.random(shape) * (r.random(shape) < 0.02),
    "many decades": lambda r, shape: 10.0 ** r.uniform(-300, 300, size=shape),
    "subnormal": lambda r, shape: r.random(shape) * 1e-310,
}


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("kind", RANDOM)
def test_equals_hull_and_heap_on_random_input(kind, scope):
    random = np.random.default_rng(7)
    for seed_shape, tokens in (((3, 2, 60), 65), ((2, 3, 200), 205), ((2, 2, 400), 402)):
        assert_equals_plain(RANDOM[kind](random, seed_shape), tokens, scope=scope)


TIED = {
    "all zero": np.zeros((2, 2, 50)),
    "all equal": np.ones((2, 2, 50)),
    "equal heads": np.tile(np.arange(50.0)[::-1], (2, 2, 1)),
    "two prices": np.tile(np.repeat([2.0, 1.0], 25), (2, 2, 1)),
    "concave": np.tile(np.arange(50.0), (2, 2, 1)),
    "staircase": np.floor(np.arange(50, 0, -1) / 7)[None, None] + np.zeros((2, 2, 1)),
    "saw": np.tile([3.0, 1.0, 2.0, 2.0, 0.0], (2, 2, 10)),
    "one spike last": np.concatenate([np.zeros((2, 2, 49)), np.ones((2, 2, 1))], axis=2),
    "thirds": np.tile([1.0, 0.0, 0.0], (2, 2, 17))[..., :50],
}


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("floor", [None, 4, 17])
def test_ties_discard_from_the_lower_head_first(kind, floor):
    assert_equals_plain(TIED[kind], 54, floor)


@st.composite
def samples(draw, most=25):
    """Small integers, so that prices tie often and are exact."""
    layers, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    free, protected = draw(st.integers(0, most)), draw(st.integers(0, 5))
    tokens = max(1, free + protected)
    top = draw(st.sampled_from([1, 3, 1000]))
    values = draw(st.lists(st.integers(0, top), min_size=layers * heads * free, max_size=layers * heads * free))
    utility = np.array(values, dtype=np.float64).reshape(layers, heads, free)
    floor = draw(st.integers(tokens - free, tokens))
    return utility, tokens, floor


@given(samples(), st.sampled_from(["global", "layer"]))
@settings(max_examples=300, deadline=None)
def test_equals_hull_and_heap_on_any_integers(sample, scope):
    assert_equals_plain(*sample, scope=scope)


def optimum(curves, most):
    """Least total loss at every number of discards 0 .. most, by dynamic programming over heads."""
    best = np.array([0.0])
    for curve in curves:
        longer = np.full(len(best) + len(curve) - 1, np.inf)
        for m, loss in enumerate(curve):
            longer[m : m + len(best)] = np.minimum(longer[m : m + len(best)], best + loss)
        best = longer
    return best[: most + 1]


@given(samples(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_certificate_brackets_the_optimum(sample, polish):
    utility, tokens, floor = sample
    heads, limit = [head for layer in utility for head in layer], tokens - floor
    ours = solve(utility, tokens, floor, polish=polish)
    curves = [loss_curve(head, limit) for head in heads]
    best = optimum(curves, len(heads) * limit)
    corners = [hull_vertices(curve) for curve in curves]
    hull = [np.interp(range(limit + 1), c, [curve[m] for m in c]) for c, curve in zip(corners, curves, strict=True)]
    gap = max(np.max(np.array(curve) - h) for curve, h in zip(curves, hull, strict=True))
    prices = sorted(
        ((curve[b] - curve[a]) / (b - a), head, b - a)
        for head, (c, curve) in enumerate(zip(corners, curves, strict=True))
        for a, b in pairwise(c)
    )
    vertices = {0, *np.cumsum([size for _, _, size in prices], dtype=int)}
    for kept, loss, bound in zip(ours.kept, ours.loss, ours.lower_bound, strict=True):
        gone = tokens - kept.ravel()
        assert ((gone >= 0) & (gone <= limit)).all()
        assert loss == sum(curve[m] for curve, m in zip(curves, gone, strict=True))
        assert bound - 1e-9 <= best[gone.sum()] <= loss <= bound + gap + 1e-9
        if int(gone.sum()) in vertices and not polish:
            assert loss == best[gone.sum()]
            np.testing.assert_allclose(bound, loss)


@given(samples())
@settings(max_examples=100, deadline=None)
def test_totals_are_exact_and_budgets_without_polish_are_nested(sample):
    utility, tokens, floor = sample
    entries = utility.shape[0] * utility.shape[1] * tokens
    floors = utility.shape[0] * utility.shape[1] * floor
    plain_kept, polished = solve(utility, tokens, floor).kept, solve(utility, tokens, floor, polish=True).kept
    for kept in (plain_kept, polished):
        np.testing.assert_array_equal(kept.sum((1, 2)), np.maximum(kept_total(entries), floors))
    assert (np.diff(plain_kept, axis=0) <= 0).all()


def test_polish_is_never_worse_and_removes_most_of_the_gap():
    random = np.random.default_rng(3)
    before = after = 0.0
    for kind in ("heavy tailed", "attention like", "exponential"):
        utility = RANDOM[kind](random, (8, 8, 500))
        rough, fine = solve(utility, 504), solve(utility, 504, polish=True)
        assert (fine.loss <= rough.loss + 1e-12 * rough.loss).all()
        np.testing.assert_array_equal(fine.lower_bound, rough.lower_bound)
        before += (rough.loss - rough.lower_bound).sum() / rough.loss.sum()
        after += (fine.loss - fine.lower_bound).sum() / rough.loss.sum()
    assert after < 0.5 * before


def test_hull_prices_rise_within_each_head():
    utility = np.random.default_rng(0).lognormal(0, 2, size=(5, 700))
    edges = hulls(utility, 650)
    for head in range(5):
        mine = edges.head == head
        assert edges.size[mine].sum() == 650
        assert (np.diff(edges.price[mine]) > 0).all()
        corners = np.concatenate([[0], np.cumsum(edges.size[mine])])
        np.testing.assert_array_equal(edges.start[mine], corners[:-1])
        assert corners.tolist() == hull_vertices(loss_curve([Fraction(x) for x in utility[head]], 650))


def test_grid_totals_round_half_up():
    assert kept_total(50)[[0, 1, 2, 98]].tolist() == [50, 49, 49, 1]  # 49.5, 49, 48.5, 0.5
    assert kept_total(4000)[79] == 800
    assert [floor_of(tokens, 5) for tokens in (3, 100, 549, 550, 649, 650)] == [3, 5, 5, 6, 6, 7]


@pytest.mark.parametrize(
    ("utility", "options", "message"),
    [
        (np.array([[[1.0, np.nan]]]), {}, "NaN"),
        (np.array([[[1.0, np.inf]]]), {}, "finite"),
        (np.full((1, 2, 2), 0.3 * np.finfo(np.float64).max), {}, "sum over all heads"),
        (np.full((4, 1, 2), 0.3 * np.finfo(np.float64).max), {"scope": "layer"}, "sum over all heads"),
        (np.array([[[1.0, -1.0]]]), {}, "negative"),
        (np.ones((1, 1, 2)), {"floor": 3}, "floor of 3"),
        (np.ones((1, 1, 1)), {"floor": 0}, "1 of 2 are protected"),
        (np.ones((1, 1, 2)), {"scope": "head"}, "use 'global' or 'layer'"),
    ],
)
def test_bad_input_is_one_line(utility, options, message):
    with pytest.raises(ValueError, match=message) as error:
        solve(utility, 2, **options)
    assert "\n" not in str(error.value)
