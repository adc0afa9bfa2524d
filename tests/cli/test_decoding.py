"""decoding= from the command line, beside dense attention that evicts by the same rule while it answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from evals.run.records import SampleRecord
from lukv.model import LoadedModel, load
from tests.as_typed import Command
from tests.cli.test_records import list_faults
from tests.cli.two_contexts import QUESTIONS, samples, write_benchmark

CONTEXTS = ["The bells of the town ring at noon. " * 3, "Rain fell on 12 of 30 days. " * 2]
NEW = 40
SEEN: dict[int, Tensor] = {}
"""Layer -> keys [K, T, d] of the last forward of the reference."""
STAGES: list[tuple[int, list[list[Tensor]]]] = []
"""(tokens seen, layer -> KV head -> positions that stayed): tokens from there on see of those before only these."""


def attend(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Dense attention in float64: nothing is freed, what is evicted has a logit of -inf."""
    SEEN[module.layer_idx] = key[0]
    tokens, group = key.shape[2], query.shape[1] // key.shape[1]
    visible = torch.ones(tokens, tokens, dtype=torch.bool).tril().repeat(query.shape[1], 1, 1)
    for boundary, layers in STAGES:
        for head, stayed in enumerate(layers[module.layer_idx]):
            gone = torch.ones(boundary, dtype=torch.bool)
            gone[stayed[stayed < boundary]] = False
            visible[head * group : (head + 1) * group, boundary:, :boundary] &= ~gone
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
    weights = logits.masked_fill(~visible, -math.inf).softmax(-1)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2), None


AttentionInterface.register("decoding_reference", attend)


def keep(size: float, boundary: int) -> list[list[Tensor]]:
    """KeyDiff's rule, head by head, among what the last stage left and what came since: the `size` keys that are least
    like the mean of the directions. Heads are filled alike, the first ones by one more where that is not even."""
    before, stayed = STAGES[-1] if STAGES else (0, [[torch.arange(0)] * len(SEEN[0])] * len(SEEN))
    layers = []
    for index, keys in SEEN.items():
        total = math.floor(size * len(keys) + 0.5)
        heads = []
        for head, key in enumerate(keys):
            held = torch.cat([stayed[index][head], torch.arange(before, boundary)])
            direction = torch.nn.functional.normalize(key[held].float(), dim=-1)
            likeness = direction @ torch.nn.functional.normalize(direction.mean(0), dim=0)
            count = total // len(keys) + (head < total % len(keys))
            best = sorted(range(len(held)), key=lambda i: (likeness[i].item(), -i))[:count]
            heads.append(held[torch.tensor(sorted(best))])
        layers.append(heads)
    return layers


def answer_densely(model: PreTrainedModel, loaded: LoadedModel, context: str, question: str, rule: Any) -> Any:
    """The reference's answer, and (tokens, entries, counts of the last) of its evictions.

    rule: budget of the prompt, then of later evictions (a share or a size), and how many tokens lie between two.
    """
    prompt_share, later, every = rule
    before, after = loaded.prompt_ids(context, question, "")
    STAGES.clear()
    tokens, said = [*before], list[int]()
    told: list[tuple[int, list[list[int]]]] = []
    forward = lambda: model(torch.tensor([tokens]), use_cache=False).logits[0, -1]  # noqa: E731
    with torch.no_grad():
        forward()
        STAGES.append((len(tokens), keep(prompt_share * len(tokens), len(tokens))))
        checked, new = len(tokens), after
        while len(said) < NEW:
            tokens += new
            logits = forward()
            if len(tokens) - checked >= every:
                checked = len(tokens)
                STAGES.append((checked, keep(later * checked if later < 1 else later, checked)))
                told.append((checked, [[len(head) for head in heads] for heads in STAGES[-1][1]]))
            token = int(logits.argmax())
            if token in loaded.eos_ids:
                break
            said, new = [*said, token], [token]
    told = [(at, counts) for at, counts in told if at < len(before + after + said)]  # what a token of the answer saw
    entries = [sum(map(sum, counts)) for _, counts in told]
    return loaded.decode(said), {"tokens": [at for at, _ in told], "entries": entries, "kept": told[-1][1]}


@pytest.fixture
def command_line(command: Command, model: Path, tmp_path: Path):
    """One benchmark of two contexts with two questions each."""
    base = write_benchmark(tmp_path, model, CONTEXTS)
    base += [f"benchmark.max_new_tokens={NEW}", "model.dtype=float64"]
    return lambda *args: command(*(["-m"] if any("," in a for a in args) else []), *base, *args)


def results(lines: dict[str, dict]) -> dict[str, list]:
    return {i: [line[key] for key in ("kept", "prediction", "score", "while_answering")] for i, line in lines.items()}


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        (["budget=1", "decoding=size", "decoding.tokens=31", "decoding.every=24"], (1, 31, 24)),
        (["budget=0.4", "decoding=size", "decoding.tokens=20", "decoding.every=7"], (0.4, 20, 7)),
        (["budget=0.4", "decoding=share", "decoding.share=0.3", "decoding.every=16"], (0.4, 0.3, 16)),
    ],
    ids=["uncompressed", "size", "share"],
)
def test_answers_are_those_of_dense_attention_with_the_same_rule(command_line, model, tmp_path, typed, rule) -> None:
    """In one batch, two questions a context: predictions and counts are those of each question alone."""
    assert command_line("method=keydiff", *typed) == 0
    found = samples(tmp_path, "*keydiff*")
    loaded = load(model, dtype="float64", device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(model, attn_implementation="decoding_reference").double()
    lengths = []
    for number, (context, question) in enumerate((c, q) for c in CONTEXTS for q in QUESTIONS):
        line = found[f"data-{number}"]
        said, told = answer_densely(stock, loaded, context, question, rule)
        assert (line["prediction"], line["while_answering"]) == (said, told)
        assert list_faults(line, SampleRecord) == []
        lengths.append(len(told["tokens"]))
    assert min(lengths) > 0
    assert len({line["prediction"] for line in found.values()}) == 4
    (path,) = tmp_path.glob("*keydiff*/result.json")
    budget = json.loads(path.read_text())["budget"]
    assert budget["answer_evictions"] == np.mean(lengths)
    assert budget["answer_entries"] == np.mean([line["while_answering"]["entries"][-1] for line in found.values()])


SIZE = ["decoding=size", "decoding.tokens=24", "decoding.every=9"]


def test_a_sweep_gives_what_each_run_gives_alone(command_line, tmp_path, monkeypatch) -> None:
    """Sizes, methods and the plain cache of one prefill, decoded in one batch."""
    assert (
        command_line("method=keydiff,snapkv", "budget=0.4,1", *SIZE, f"runs={tmp_path}/together", "scorer.name=x") == 2
    )
    swept = ["decoding=size", "decoding.tokens=70,90", "decoding.every=9"]
    assert command_line("method=keydiff,snapkv", "budget=0.4,1", *swept, f"runs={tmp_path}/together") == 0
    assert command_line("method=snapkv", "budget=0.4", *swept, "share_prefill=false", f"runs={tmp_path}/apart") == 0
    assert command_line("method=snapkv", "budget=0.4", f"runs={tmp_path}/plain") == 0
    plain = samples(tmp_path / "plain", "*snapkv*")
    seen = [{i: line["prediction"] for i, line in plain.items()}]
    for size in (70, 90):
        name = f"*__snapkv__b0.4__size{size}-every9__*"
        alone, together = samples(tmp_path / "apart", name), samples(tmp_path / "together", name)
        assert results(alone) == results(together)
        assert {line["times"]["shared"] for line in together.values()} == {8}
        seen.append({i: line["prediction"] for i, line in alone.items()})
    assert seen[0] != seen[1]
    assert all("while_answering" not in line for line in plain.values())


def test_a_stopped_run_goes_on_to_the_same_lines(command_line, tmp_path) -> None:
    wanted = ["method=keydiff", "budget=0.4", "batch_size=1", *SIZE]
    assert command_line(*wanted) == 0
    (path,) = tmp_path.glob("*keydiff*/samples.jsonl")
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole[:1]) + "\n")
    path.with_name("result.json").unlink()
    assert command_line(*wanted) == 0
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{**line, "times": 0} for line in again] == [{**json.loads(line), "times": 0} for line in whole]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["method=full"],
            "method=full evicts nothing, also while answering: decoding=size needs a method with a scorer",
        ),
        (["method=kvzip"], "decoding=size: scorer=kvzip asks for extra passes over a whole cache"),
        (["scorer=oracle"], "decoding=size: scorer=oracle has to know the whole answer before it evicts"),
        (["allocator=global_topk"], "decoding=size: allocator=global_topk compares all layers"),
        (["method=snapkv", "decoding.tokens=31"], "decoding.tokens=31 is less than the 32 that scorer=snapkv and its"),
        (["decoding.tokens=0"], "decoding.tokens=0 must be at least 1"),
        (["decoding.every=0"], "decoding.every=0 must be at least 1"),
        (["decoding.every=null"], "decoding.every=null must be at least 1"),
        (["decoding.tokens=few"], "decoding.tokens=few: a whole number is expected, as in conf/decoding/size.yaml"),
        (["decoding=share", "decoding.share=1.5"], "decoding.share=1.5 is not a share: it must be > 0 and <= 1"),
        (["decoding.tokens=null"], "decoding needs one of tokens and share"),
        (["decoding=sise"], "no decoding named 'sise'. Did you mean 'size'?"),
        (
            ["job=latency"],
            "job.new_tokens=32: with a question of 16 tokens nothing is evicted before decoding.every=64",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_before_the_model_is_loaded(
    command_line, capsys, monkeypatch, typed: list[str], said: str
) -> None:
    if "job=latency" not in typed:
        monkeypatch.setattr("evals.run.build.load", lambda **_: pytest.fail("the model is loaded"))
    usual = [] if any(text.startswith("method=") for text in typed) else ["method=keydiff"]
    assert command_line("decoding=size", *usual, *typed) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_memory_and_time_while_answering_are_measured(command: Command, model: Path, tmp_path: Path) -> None:
    base = ["model=hf", f"model.path={model}", f"runs={tmp_path}", "job=latency", "job.repeats=1", "method=keydiff"]
    asked = ["budget=1", "job.lengths=[64]", "job.new_tokens=60", "decoding=size", "decoding.tokens=20"]
    assert command(*base, *asked, "decoding.every=8") == 0
    (path,) = tmp_path.glob("*__keydiff__b1__size20-every8__latency__*/result.json")
    evicted, full = json.loads(path.read_text())["rows"]
    assert evicted["cache_bytes"] == full["cache_bytes"]
    entry = full["cache_bytes"] // 64
    assert full["answered_cache_bytes"] == (64 + 16 + 59) * entry
    assert evicted["answered_cache_bytes"] == (20 + (16 + 59) % 8) * entry
