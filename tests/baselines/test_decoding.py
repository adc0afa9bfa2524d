"""Every method of conf/method evicts while answering, or says that it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import lukv
from lukv.allocation import Budget
from lukv.backend.generate import answer, compress
from lukv.conf import CONF, GROUPS
from lukv.model import LoadedModel, load

SIZE, EVERY = 60, 8


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load(Path(CONF.parent / "models" / "tiny"), device="cpu")


@pytest.mark.parametrize("name", [name for name in GROUPS["method"] if name != "full"])
def test_what_it_keeps_while_answering_is_within_the_size(tiny: LoadedModel, name: str) -> None:
    method = lukv.method(name, 0.5, tiny)
    assert method is not None
    ids, question = tiny.prompt_ids("One of the special magic numbers for tiger is: 12. " * 12, "Which?", "")
    if method.waits:
        with pytest.raises(ValueError, match="before it is evicted"):
            compress(tiny, [ids], later=method, every=EVERY)
        return
    cache = compress(tiny, [ids], eviction=method, later=replace(method, budget=Budget(tokens=SIZE)), every=EVERY)
    (evictions,) = answer(tiny, cache, [question], 24).evictions
    assert [each.tokens - len(ids) for each in evictions] == sorted({each.tokens - len(ids) for each in evictions})
    assert len(evictions) >= 2
    layers, heads = evictions[0].kept.shape
    for each in evictions:
        assert 0 < each.kept.sum() <= SIZE * layers * heads
