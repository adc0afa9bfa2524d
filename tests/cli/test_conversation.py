"""benchmark=conversation from the command line, beside stock generate, and beside dense attention that evicts by the
same rule after every turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from evals.run.records import SampleRecord
from lukv.model import LoadedModel, load
from tests.as_typed import Command
from tests.cli.test_decoding import STAGES, keep
from tests.cli.test_records import list_faults
from tests.cli.two_contexts import samples

CONTEXTS = ["The bells of the town ring at noon. " * 3, "Rain fell on 12 of 30 days. " * 2]
QUESTIONS = ["Where is the key?", "How often did it rain?", "And who rang?"]
NEW = 12
SHARE = 0.4


@pytest.fixture
def talk(command: Command, model: Path, tmp_path: Path) -> Any:
    """run.py on two conversations of three turns; "-m" where a setting has several values."""
    turns = [{"input": question, "answer": "47"} for question in QUESTIONS]
    lines = [{"context": context, "multi_turns": turns} for context in CONTEXTS]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    base = ["model=hf", f"model.path={model}", "model.dtype=float64", "benchmark=conversation"]
    base += [f"benchmark.data={tmp_path}/talks.jsonl", f"benchmark.max_new_tokens={NEW}", "reference=null"]

    def call(*args: str, runs: str = "runs") -> int:
        return command(*(["-m"] if any("," in a for a in args) else []), *base, f"runs={tmp_path}/{runs}", *args)

    return call


def encode_turn(loaded: LoadedModel, question: str) -> list[int]:
    """What stands behind an answer, as the model's chat template has it."""
    return loaded.tokenizer.encode(f"<|end|><|user|>{question}<|end|><|assistant|>", add_special_tokens=False)


def talk_densely(
    stock: PreTrainedModel, loaded: LoadedModel, context: str, again: bool, history: Sequence[str] = ()
) -> list[tuple[str, int, int]]:
    """Of each turn what the reference says, the tokens seen before it, and the entries that were left of them.

    again: whether the turns are evicted too. history: what later turns see instead of the reference's own answers.
    """
    before, first = loaded.prompt_ids(f"{context}\n\n", QUESTIONS[0], "")
    STAGES.clear()
    seen, told = [*before], []

    def forward(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return stock(torch.tensor([tokens]), use_cache=False).logits[0, -1]

    def evict() -> None:
        forward(seen)
        STAGES.append((len(seen), keep(SHARE * len(seen), len(seen))))

    evict()
    for number, question in enumerate(QUESTIONS):
        asked = first if number == 0 else encode_turn(loaded, question)
        boundary, stayed = STAGES[-1]
        entries = sum(len(head) for heads in stayed for head in heads)
        entries += (len(seen) - boundary) * sum(len(heads) for heads in stayed)
        said: list[int] = []
        while len(said) < NEW and (token := int(forward([*seen, *asked, *said]).argmax())) not in loaded.eos_ids:
            said.append(token)
        told.append((loaded.decode(said), len(seen), entries))
        seen += [*asked, *(loaded.text_ids(f" {history[number]}") if history else said)]
        if again:
            evict()
    return told


@pytest.mark.parametrize("decoding", ["none", "turns"])
@pytest.mark.parametrize("history", ["own", "expected"])
def test_turns_are_those_of_dense_attention_with_the_same_rule(talk, model, tmp_path, decoding, history) -> None:
    typed = ["method=keydiff", f"budget={SHARE}", f"decoding={decoding}", f"benchmark.history={history}"]
    assert talk(*typed) == 0
    found = samples(tmp_path / "runs", "*keydiff*")
    loaded = load(model, dtype="float64", device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(model, attn_implementation="decoding_reference").double()
    fixed = ["47"] * len(QUESTIONS) if history == "expected" else []
    for number, context in enumerate(CONTEXTS, start=1):
        told = talk_densely(stock, loaded, context, decoding == "turns", fixed)
        for turn, (said, tokens, entries) in enumerate(told, start=1):
            line = found[f"talks-{number}-{turn}"]
            assert (line["prediction"], line["context_tokens"]) == (said, tokens)
            assert sum(map(sum, line["kept"])) == entries
            assert (line["turn"], line["task"]) == (turn, f"talks_turn_{turn}")
            assert list_faults(line, SampleRecord) == []
    assert len({line["prediction"] for line in found.values()}) > 2


def test_the_full_cache_says_what_stock_generate_does(talk, model, tmp_path) -> None:
    assert talk("method=full") == 0
    found = samples(tmp_path / "runs", "*full*")
    loaded = load(model, dtype="float64", device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(model, attn_implementation="sdpa").double()
    for number, context in enumerate(CONTEXTS, start=1):
        before, first = loaded.prompt_ids(f"{context}\n\n", QUESTIONS[0], "")
        ids = [*before, *first]
        for turn, following in enumerate([*QUESTIONS[1:], ""], start=1):
            made = stock.generate(
                torch.tensor([ids]),
                do_sample=False,
                max_new_tokens=NEW,
                eos_token_id=list(loaded.eos_ids),
                pad_token_id=0,
            )[0, len(ids) :].tolist()
            said = made[:-1] if made[-1] in loaded.eos_ids else made
            assert found[f"talks-{number}-{turn}"]["prediction"] == loaded.decode(said)
            ids += [*said, *encode_turn(loaded, following)]


def results(lines: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    return {i: [line[key] for key in ("kept", "prediction", "score", "context_tokens")] for i, line in lines.items()}


def test_a_sweep_gives_what_each_run_gives_alone(talk, tmp_path) -> None:
    """Methods, budgets, the full cache and ways to evict again of one prefill, in one batch."""
    assert talk("method=full,keydiff,snapkv", "budget=0.4,0.8", runs="plain") == 0
    assert talk("method=keydiff,snapkv", "budget=0.4,0.8", "decoding=none,turns,share", runs="all") == 0
    seen = set()
    for method in ("keydiff", "snapkv"):
        for name, typed in (("everyturn", "turns"), ("share0.2-every64", "share"), ("talks", "none")):
            folder = f"alone-{method}-{typed}"
            assert talk(f"method={method}", "budget=0.4", f"decoding={typed}", "batch_size=1", runs=folder) == 0
            pattern = f"*__{method}__b0.4__{'conversation-' * (name == 'talks')}{name}*"
            alone = samples(tmp_path / folder, pattern)
            assert results(alone) == results(samples(tmp_path / "all", pattern))
            seen.add(tuple(line["prediction"] for line in alone.values()))
    assert results(samples(tmp_path / "plain", "*__keydiff__b0.4__*")) == results(
        samples(tmp_path / "all", "*__keydiff__b0.4__conversation*")
    )
    assert len(seen) > 2


def test_a_stopped_run_goes_on_to_the_same_lines(talk, tmp_path) -> None:
    wanted = ["method=keydiff", "budget=0.4", "batch_size=1", "decoding=turns", "record_kept=1"]
    assert talk(*wanted) == 0
    (path,) = tmp_path.glob("runs/*keydiff*/samples.jsonl")
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:4]) + "\n")  # one conversation and a turn of the other
    path.with_name("result.json").unlink()
    assert talk(*wanted) == 0
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{**line, "times": 0} for line in again] == [{**json.loads(line), "times": 0} for line in whole]
    shown = [line for line in again if "kept_tokens" in line]
    assert [len(line["kept_tokens"]["tokens"]) for line in shown] == [line["context_tokens"] for line in shown]
    assert len(shown) == len(QUESTIONS)


def test_a_run_of_a_sweep_that_cannot_talk_does_not_stop_the_others(talk, tmp_path, capsys) -> None:
    assert talk("method=keydiff", "scorer=keydiff,oracle", "budget=0.4") == 2
    assert "not in a conversation" in capsys.readouterr().out
    assert len(samples(tmp_path / "runs", "*__keydiff__*")) == 6
    assert len([*tmp_path.glob("runs/*/samples.jsonl")]) == 1


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["decoding=turns", "benchmark=ruler", "benchmark.length=512"],
            "decoding.every=turn evicts after each turn of a",
        ),
        (["decoding=turns", "job=latency"], "decoding.every=turn evicts after each turn of a conversation, and here"),
        (["scorer=oracle"], "scorer=oracle has to know the answer before it evicts: not in a conversation"),
        (["decoding=turns", "decoding.share=2"], "decoding.share=2 is not a share"),
        (["decoding=size", "decoding.every=turns"], "decoding.every=turns: a whole number is expected"),
        (["benchmark.history=mine"], "benchmark.history=mine: no such history. There are: own, expected"),
        (["benchmark.turns=1"], "benchmark.turns=1 must be at least 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(command, model, capsys, tmp_path, typed: list[str], said: str) -> None:
    usual = ["method=keydiff", "budget=0.4", "model=hf", f"model.path={model}", "reference=null", f"runs={tmp_path}/r"]
    benchmark = [] if any(t.startswith("benchmark=") for t in typed) else ["benchmark=conversation", "limit=1"]
    assert command(*usual, *benchmark, *typed) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.splitlines()[-1].startswith("run.py: ")
