"""Every scorer under conf/ with every allocator under conf/ meets the contract; classes that break it are told how."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from lukv.allocation import Allocator, Budget, Uniform
from lukv.contract import ContractError, check_method
from lukv.scoring import ExtraPass, Scorer
from lukv.selection import Protection


def test_every_config(build, any_scorer, any_allocator):
    check_method(*build(scorer=any_scorer, allocator=any_allocator))


def test_with_equal_protection(build, any_scorer):
    check_method(*build(scorer=any_scorer), Uniform(), Protection(sink=4, recent=1))


@pytest.mark.parametrize("geometry", [(1, 1, 1, 8), (4, 3, 9, 6)])
def test_other_geometries(build, any_allocator, geometry):
    shape = dict(zip(("layers", "kv_heads", "query_heads", "head_dim"), geometry, strict=True))
    built = build(scorer="snapkv", allocator=any_allocator, layers=shape["layers"], kv_heads=shape["kv_heads"])
    check_method(*built, **shape)


@dataclass(frozen=True)
class Norm(Scorer):
    """A correct little scorer; the classes below each break one rule."""

    name: str = "norm"

    def score(self, layer):
        return layer.keys.float().norm(dim=-1)


class WrongShape(Norm):
    def score(self, layer):
        return super().score(layer)[:, :1]


class WrongType(Norm):
    def score(self, layer):
        return super().score(layer).double()


class NotFinite(Norm):
    def score(self, layer):
        return super().score(layer).fill_(torch.nan)


class Overwrites(Norm):
    def score(self, layer):
        layer.keys.abs_()
        return super().score(layer)


class Dice(Norm):
    def score(self, layer):
        return torch.rand_like(super().score(layer))


class CountsPieces(Norm):
    def observe(self, observed, queries, start, rope):
        return (observed or 0) + 1

    def score(self, layer):
        return super().score(layer) + layer.observed


@dataclass(frozen=True)
class Remembers(Norm):
    seen: list = field(default_factory=list)

    def observe(self, observed, queries, start, rope):
        self.seen.append(float(queries.flatten()[0]))

    def score(self, layer):
        return super().score(layer) + abs(self.seen[0] - self.seen[-1])


class Counts(Allocator):
    """An allocator from a function of (budget, layer)."""

    def __init__(self, rule):
        self.rule = rule

    def counts(self, budget, layer):
        return self.rule(budget, layer)


def one_more(budget, layer):
    return (Uniform().counts(budget, layer) + torch.eye(layer.heads, dtype=torch.int64)[0]).clamp(max=layer.tokens)


def float_counts(budget, layer):
    return Uniform().counts(budget, layer).float()


def negative(budget, layer):
    counts = Uniform().counts(budget, layer)
    return torch.cat([counts[:1] - layer.tokens - 1, counts[1:] + layer.tokens + 1])


def one_short(budget, layer):
    return Uniform().counts(budget, layer)[:1]


def flattens(budget, layer):
    layer.scores.zero_()
    return Uniform().counts(budget, layer)


def drifting():
    """Shifts one entry between the heads at every second call."""
    calls = []

    def rule(budget, layer):
        calls.append(1)
        counts = Uniform().counts(budget, layer)
        if len(calls) % 2 and counts[0] > 0 and counts[1] < layer.tokens:
            counts += torch.tensor([-1, 1])
        return counts

    return rule


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (WrongShape(), r"scores are \[2, 1\], not \[K, T\]"),
        (WrongType(), "not float32"),
        (NotFinite(), "NaN or infinite"),
        (Overwrites(), "writes into its inputs"),
        (Dice(), "again gives other scores"),
        (CountsPieces(), "cut into chunks"),
        (Remembers(), "other scores|other prompts"),
    ],
)
def test_broken_scorer(scorer, message):
    with pytest.raises(ContractError, match=message):
        check_method(scorer, Uniform())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (one_more, "neither"),
        (float_counts, "int64"),
        (negative, "not within"),
        (one_short, r"are not \[K\] = \[2\]"),
        (flattens, "writes into the scores"),
        (drifting(), "counts change"),
    ],
)
def test_broken_allocator(rule, message):
    with pytest.raises(ContractError, match=message):
        check_method(Norm(), Counts(rule))


def test_a_global_total_is_enough():
    """Layers may share unevenly if all together keep what the budget says."""

    def rule(budget: Budget, layer):
        total = budget.entries(layer.tokens, layer.heads * layer.layers)
        spread = np.diff(np.linspace(0, total, layer.layers * layer.heads + 1).astype(int)).reshape(layer.layers, -1)
        return torch.from_numpy(spread[layer.layer])

    check_method(Norm(), Counts(rule))


class Asks(Norm):
    """A correct scorer with two extra passes; the classes below each break one rule."""

    def extra_passes(self, prompt):
        return [ExtraPass((*prompt.encode("x"), *prompt.ids[:2])), ExtraPass((1,))]

    def observe_pass(self, observed, layer):
        norm = layer.keys[:, : layer.tokens].float().norm(dim=-1) * layer.queries.float().norm()
        return norm if observed is None else observed + norm

    def score(self, layer):
        return layer.observed


class AsksNothing(Asks):
    def extra_passes(self, prompt):
        return [ExtraPass(())]


class AsksOtherwise(Asks):
    def extra_passes(self, prompt):
        return [ExtraPass((int(torch.randint(10**6, ())),))]


class AddsInPlace(Asks):
    def observe_pass(self, observed, layer):
        return super().observe_pass(None, layer) if observed is None else observed.add_(1)


class TurnsQueries(Asks):
    def observe_pass(self, observed, layer):
        layer.queries.neg_()
        return super().observe_pass(observed, layer)


def test_extra_passes():
    check_method(Asks(), Uniform())
    for scorer, message in [
        (AsksNothing(), "an extra pass needs at least one token"),
        (AsksOtherwise(), "asks for other passes each time"),
        (AddsInPlace(), "observe_pass writes into its inputs"),
        (TurnsQueries(), "observe_pass writes into its inputs"),
    ]:
        with pytest.raises(ContractError, match=message):
            check_method(scorer, Uniform())


def test_allocators_that_compare_layers():
    class Together(Allocator):
        def counts_of_layers(self, budget, layers):
            return [Uniform().counts(budget, layer) for layer in layers]

    class Short(Together):
        def counts_of_layers(self, budget, layers):
            return super().counts_of_layers(budget, layers)[1:]

    check_method(Norm(), Together())
    with pytest.raises(ContractError, match="counts of 2 layers, not of 3"):
        check_method(Norm(), Short())
