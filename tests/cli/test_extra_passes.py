"""Methods that ask for extra passes, from the command line: alone, in a sweep, stopped, calibrated."""

from __future__ import annotations

import json

import pytest

from baselines.global_topk import GlobalTopK
from baselines.kvzip import KVzip
from evals.jobs import decode
from lukv.allocation import Budget
from lukv.backend.generate import answer, compress
from lukv.model import load
from lukv.scoring import Prompt
from lukv.selection import Eviction, Protection
from tests.cli.two_contexts import QUESTIONS, samples, write_benchmark

CONTEXTS = ["The bells of the town ring at noon. " * 3, "Rain fell on 12 of 30 days. " * 2]
NAMES = ("begin", "end", "user", "assistant")


@pytest.fixture
def command_line(command, model, tmp_path):
    """One benchmark of two contexts with two questions each, in one batch; chunks of 40 tokens."""
    base = write_benchmark(tmp_path, model, CONTEXTS)
    base += ["benchmark.max_new_tokens=5", "batch_size=2", "model.dtype=float64"]
    return lambda *args: command(*(["-m"] if any("," in a for a in args) else []), *base, *args)


def results(lines: dict[str, dict]) -> dict[str, list]:
    return {i: [line[key] for key in ("kept", "prediction", "score", "kept_share")] for i, line in lines.items()}


def test_a_run_is_what_the_library_computes(command_line, model, tmp_path):
    assert command_line("method=kvzip", "budget=0.3", "scorer.chunk=40") == 0
    found = samples(tmp_path, "*kvzip*")
    loaded = load(model, dtype="float64")
    eviction = Eviction(KVzip(chunk=40), GlobalTopK(), Protection(), Budget(share=0.3))
    for number, (context, question) in enumerate((c, q) for c in CONTEXTS for q in QUESTIONS):
        ids, after = loaded.prompt_ids(context, question, "")
        prompt = Prompt(tuple(ids), loaded.text_ids, 2, tuple(loaded._ids("<|end|><|assistant|>")))
        cache = compress(loaded, [ids], eviction=eviction, prompts=[prompt])
        line = found[f"data-{number}"]
        assert line["kept"] == cache.kept_counts[:, 0].tolist()
        assert line["prediction"] == loaded.decode(answer(loaded, cache, [after], 5, loaded.eos_ids).tokens[0])


def test_what_a_prompt_is_told_to_be(model):
    """The template's head is found in the ids, also if the text's first letters are one token with its end."""
    loaded = load(model)
    begin, end, user, assistant = (loaded.tokenizer.convert_tokens_to_ids(f"<|{t}|>") for t in NAMES)
    text = loaded.text_ids("The bells")
    ids, _ = loaded.prompt_ids("The bells", "?", "")
    assert ids == [begin, user, *text]
    prompt = loaded.describe_prompt(ids)
    assert (prompt.ids, prompt.head, prompt.tail) == (tuple(ids), 2, (end, assistant))
    assert loaded.describe_prompt([begin, 99, *text]).head == 1
    for other in (text, [user, *text]):
        prompt = loaded.describe_prompt(other)
        assert (prompt.head, prompt.tail) == (0, tuple(loaded.text_ids("\n")))
    bare = load(model, chat=False).describe_prompt(ids)
    assert (bare.head, bare.tail) == (0, tuple(loaded.text_ids("\n")))


def test_a_sweep_gives_what_each_run_gives_alone(command_line, tmp_path, monkeypatch):
    passes = []
    run_passes = decode.run_passes
    monkeypatch.setattr(decode, "run_passes", lambda *args: passes.append(len(args[2])) or run_passes(*args))
    assert command_line("method=kvzip,kvzip_plus,keydiff", "budget=0.2,0.5", f"runs={tmp_path}/together") == 0
    assert passes == [3], "one batch, three scorers"
    for method in ("kvzip", "kvzip_plus"):
        assert command_line(f"method={method}", "budget=0.2", f"runs={tmp_path}/alone") == 0
        alone = results(samples(tmp_path / "alone", f"*__{method}__b0.2*"))
        assert alone == results(samples(tmp_path / "together", f"*__{method}__b0.2*"))
    lines = samples(tmp_path / "together", "*__kvzip__b0.2*")
    assert lines["data-0"]["kept"] == lines["data-1"]["kept"]  # of one context, whatever is asked
    assert len({sum(map(sum, line["kept"])) for line in lines.values()}) == 2
    spent = {m: samples(tmp_path / "together", f"*__{m}__b0.5*")["data-0"]["times"] for m in ("kvzip", "keydiff")}
    assert spent["kvzip"]["prefill_s"] > spent["keydiff"]["prefill_s"]


def test_a_stopped_run_goes_on_to_the_same_lines(command_line, tmp_path):
    assert command_line("method=kvzip", "budget=0.3", "batch_size=1") == 0
    (path,) = tmp_path.glob("*kvzip*/samples.jsonl")
    whole = path.read_text().splitlines()
    path.write_text(whole[0] + "\n")
    path.with_name("result.json").unlink()
    assert command_line("method=kvzip", "budget=0.3", "batch_size=1") == 0
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{**line, "times": 0} for line in again] == [{**json.loads(line), "times": 0} for line in whole]


def test_budgets_are_measured_for_it_too(command, model, tmp_path):
    base = ["model=hf", f"model.path={model}", f"runs={tmp_path}", f"model.tables={tmp_path}/tables"]
    small = [f"calibration.{x}" for x in ("benchmark.length=1200", "benchmark.tasks=[niah_single_1]", "contexts=1")]
    job = ["job=calibrate", "scorer=kvzip", "job.save=true", "job.oracle.horizon=2"]
    assert command(*base, *job, *small) == 0
    assert (tmp_path / "tables/kvzip.safetensors").exists()
    assert (tmp_path / "tables/kvzip.curve.safetensors").exists()


def test_the_passes_time_is_part_of_the_latency(command, model, tmp_path):
    base = ["model=hf", f"model.path={model}", f"runs={tmp_path}", "job=latency", "job.repeats=1"]
    assert command(*base, "method=kvzip", "job.lengths=[64]", "job.new_tokens=2") == 0
    (path,) = tmp_path.glob("*/result.json")
    kvzip, full = json.loads(path.read_text())["rows"]
    assert kvzip["prefill_s"] > full["prefill_s"]
    assert kvzip["cache_bytes"] < full["cache_bytes"]
