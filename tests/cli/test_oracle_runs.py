"""scorer=oracle from the command line: each question has a cache of its own, by what the full cache's answer needed."""

from __future__ import annotations

import pytest

from baselines.adakv import AdaKV
from baselines.oracle import Oracle as OracleScorer
from lukv.allocation import Budget
from lukv.backend.generate import answer, compress
from lukv.model import load
from lukv.scoring import Prompt
from lukv.selection import Eviction, Protection
from tests.cli.two_contexts import QUESTIONS, samples, write_benchmark

CONTEXTS = [
    "The bells of the town ring at noon. " * 6 + "A key lies under stone 47.",
    "Rain fell on 12 of 30 days. " * 9,
]


@pytest.fixture
def command_line(command, model, tmp_path):
    """One benchmark of two contexts with two questions each."""
    base = write_benchmark(tmp_path, model, CONTEXTS)
    base += ["benchmark.max_new_tokens=7", "method=lukv", "allocator=adakv"]
    return lambda *args: command(*(["-m"] if "," in args[0] else []), *base, *args)


def test_each_question_has_the_cache_that_its_utility_asks_for(command_line, model, tmp_path):
    """AdaKV's budgets depend on every score: a utility of another question or row would show in the counts."""
    assert command_line("scorer=oracle", "budget=0.3") == 0
    found = samples(tmp_path, "*oracle*")
    loaded = load(model)
    eviction = Eviction(OracleScorer(), AdaKV(), Protection(4, 1), Budget(share=0.3))
    seen = []
    for number, (context, question) in enumerate((c, q) for c in CONTEXTS for q in QUESTIONS):
        ids, after = loaded.prompt_ids(context, question, "")
        steps = answer(loaded, compress(loaded, [ids]), [after], 7, loaded.eos_ids, pick=lambda x: x.argmax(-1))
        said = (*steps.tokens[0], *loaded.eos_ids)[: steps.steps]
        prompt = Prompt(tuple(ids), loaded.text_ids, question=tuple(after), answer=said)
        cache = compress(loaded, [ids], eviction=eviction, prompts=[prompt])
        line = found[f"data-{number}"]
        seen.append(line["kept"])
        assert line["kept"] == cache.kept_counts[:, 0].tolist()
        assert line["prediction"] == loaded.decode(answer(loaded, cache, [after], 7, loaded.eos_ids).tokens[0])
    assert seen[0] != seen[1]
    assert seen[2] != seen[3]


def test_in_a_sweep_it_is_what_it_is_alone(command_line, tmp_path):
    assert command_line("scorer=oracle", "budget=0.3", f"runs={tmp_path}/alone") == 0
    assert command_line("scorer=keydiff,oracle", "budget=0.3,0.5", f"runs={tmp_path}/together") == 0
    alone = samples(tmp_path / "alone", "*oracle*b0.3*")
    together = samples(tmp_path / "together", "*oracle*b0.3*")
    for key in ("kept", "prediction", "score"):
        assert {i: line[key] for i, line in alone.items()} == {i: line[key] for i, line in together.items()}
    assert len(list((tmp_path / "together").glob("*/result.json"))) == 4
    plain = samples(tmp_path / "together", "*__lukv-adakv__b0.3*")
    assert plain["data-0"]["kept"] == plain["data-1"]["kept"]  # of one context, whatever is asked


def test_where_there_is_no_answer_it_is_refused(command_line, capsys):
    assert command_line("scorer=oracle", "job=latency") == 2
    assert "scorer=oracle has to know the answer: job=latency has none" in capsys.readouterr().err
