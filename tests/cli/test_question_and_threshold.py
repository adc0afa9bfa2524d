"""FINCH and the threshold allocator as a user types them: what they need, how they refuse, what a run then says."""

from __future__ import annotations

import json

import pytest

from baselines.adakv import AdaKV
from baselines.finch import Finch
from evals.longbench.benchmark import find_seen_question
from evals.longbench.catalog import CATALOG
from lukv.allocation import Budget
from lukv.backend.generate import compress
from lukv.model import load
from lukv.selection import Eviction, Protection
from tests.cli.two_contexts import QUESTIONS, samples, write_benchmark

CONTEXTS = ["The bells of the town ring at noon. " * 3, "Rain fell on 12 of 30 days. " * 2]


@pytest.fixture
def command_line(command, model, tmp_path):
    base = write_benchmark(tmp_path, model, CONTEXTS)
    base += ["benchmark.max_new_tokens=3", "model.dtype=float64"]
    return lambda *args: command(*(["-m"] if any("," in a for a in args) else []), *base, *args)


def test_finch_looks_from_the_question_of_each_sample(command_line, model, tmp_path):
    """Alone and in a sweep, whose runs share a prefill, it keeps what the library keeps when it is told the length.
    AdaKV's counts depend on every score."""
    asked = ["method=adakv", "scorer=finch", "benchmark.question_aware=true"]
    assert command_line(*asked, "budget=0.5") == 0
    assert command_line(*asked, "budget=0.5,0.2", "seed=1") == 0
    loaded = load(model, dtype="float64")
    eviction = Eviction(Finch(), AdaKV(), Protection(), Budget(share=0.5))
    alone, swept = (samples(tmp_path, f"*finch*b0.5*s{seed}*") for seed in (0, 1))
    for number, (context, question) in enumerate((c, q) for c in CONTEXTS for q in QUESTIONS):
        ids, _ = loaded.prompt_ids(context + question, "", "")
        length = len(ids) - len(loaded.prompt_ids(context, "?", "")[0])
        assert 0 < length < len(ids) / 2
        cache = compress(loaded, [ids], eviction=eviction, questions=[length])
        for found in (alone, swept):
            assert found[f"data-{number}"]["kept"] == cache.kept_counts[:, 0].tolist()


def test_finch_is_refused_where_the_question_comes_later(command_line, tmp_path, capsys):
    for arguments, reason in (
        (["method=snapkv"], "scorer=finch looks from the question, and data-0 is compressed without it: choose benchm"),
        (["method=snapkv", "job=calibrate"], "scorer=finch looks from the question, which calibration asks after"),
        (["method=snapkv", "job=latency"], "scorer=finch looks from the question: job=latency has none"),
    ):
        assert command_line(*arguments, "scorer=finch") == 2
        said = capsys.readouterr().err
        assert reason in said
        assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*/samples.jsonl"))


def test_the_official_longbench_prompt_ends_with_its_question():
    entry, row = CATALOG["qasper"], {"context": "Much text.", "input": "Why?"}
    whole = (entry.head + entry.second + entry.question + entry.cue).format(**row)
    seen = find_seen_question(entry, row, whole)
    assert whole.endswith(seen)
    assert "Why?" in seen
    assert "Much text." not in seen
    assert find_seen_question(entry, row, whole[:-5]) == ""


def test_a_threshold_is_made_used_and_its_kept_share_is_reported_as_it_is(
    command_line, command, model, tmp_path, capsys
):
    tables = f"model.tables={tmp_path / 'random' / 'tables'}"
    asked = ["method=keydiff", "allocator=threshold", "budget=0.3", tables]
    assert command_line(*asked) == 2
    assert "no file of thresholds" in (said := capsys.readouterr().err)
    assert "job=calibrate" in said
    small = [
        "calibration.benchmark.length=1200",
        "calibration.benchmark.tasks=[niah_single_1]",
        "calibration.contexts=2",
    ]
    where = ["model=hf", f"model.path={model}", f"runs={tmp_path}", tables, "model.dtype=float64"]
    own = ["protection=own", "scorer=keydiff", "job.oracle.horizon=2", "job.save=true"]
    assert command("job=calibrate", *where, *small, *own) == 0
    capsys.readouterr()
    assert command_line(*asked) == 0
    assert "how much that is varies by prompt" in capsys.readouterr().err
    (folder,) = tmp_path.glob("*threshold*")
    shares = [line["kept_share"] for line in samples(tmp_path, "*threshold*").values()]
    result = json.loads((folder / "result.json").read_text())
    assert len(set(shares)) > 1
    assert result["budget"]["kept_share"] not in (0.3, 0)
    assert "varies by prompt" in json.loads((folder / "run.json").read_text())["caveats"][0]
    assert command_line("method=lukv", *asked[1:]) == 2  # another protection
    assert "was made for sink 0, not for 4" in capsys.readouterr().err
