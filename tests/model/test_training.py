"""The training program: its attention, its optimiser, resuming, and that loss falls."""

import json
import random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.tiny.attention import BlockedAttention
from models.tiny.data import ANSWER, Encoder, draw_batch
from models.tiny.model import config, initialise, look_back_heads
from models.tiny.optim import orthogonalise
from models.tiny.plan import Plan
from models.tiny.tasks import FAMILIES
from models.tiny.tokenizer import FOLDER
from models.tiny.train import Trainer, read_recipe, to_dict

RATES = "muon_lr: 0.02, adam_lr: 0.005, warmup: 2, decay: 2, tokens: 256"
SHORT = [
    f"cycles=[{{{RATES}, phases: [{{steps: 6, lengths: [64], mixture: {{bare: 1}}}}]}}]",
    "evaluate_every=1000",
    "evaluate_samples=0",
    "checkpoint_every=3",
]
"""Six steps on the plainest lesson."""

TWO_CYCLES = [
    *SHORT,
    f"cycles=[{{{RATES}, phases: [{{steps: 3, lengths: [64], mixture: {{bare: 1}}}}]}}, {{{RATES}, phases: ["
    "{steps: 2, lengths: [64], mixture: {bare: 1}}, "
    "{steps: 3, lengths: [256, 128], balance: 0.5, mixture: {niah: 1}}]}]",
]


def places(folder):
    return [f"work={folder}", f"out={folder / 'out'}"]


def weights_after(folder):
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("length", [1, 50, 64, 130, 300])
def test_blocked_attention_equals_pytorch_with_gradients(length):
    torch.manual_seed(0)
    inputs = [torch.randn(3, length, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(3, length, 8, dtype=torch.float64)
    ours, theirs = BlockedAttention.apply(*inputs), F.scaled_dot_product_attention(*inputs, is_causal=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), steps=5))
    assert values.min() > 0.4
    assert values.max() < 1.4


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_chosen_heads_begin_by_looking_back(size):
    shape = to_dict(read_recipe([f"recipe={size}", "model.num_hidden_layers=3"]).model)
    group = shape["num_attention_heads"] // shape["num_key_value_heads"]
    model = initialise(config(300, 1, 2, 0, **shape), seed=3).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(torch.randint(5, 300, (1, 40)), output_attentions=True).attentions
    for (layer, kv_head), offsets in look_back_heads(3).items():
        for query_head in range(group):
            offset = offsets[query_head % len(offsets)]
            weights = attentions[layer][0, group * kv_head + query_head]
            looked_at = weights[10:].argmax(-1)
            assert (torch.arange(10, 40) - looked_at == offset).float().mean() > 0.9, (layer, kv_head, query_head)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_marked_and_end(family):
    encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
    dialogue = FAMILIES[family](300, random.Random(1))
    ids, weights = encoder.encode_dialogue(dialogue, 10**6)
    marked = [i for i, w in zip(ids, weights, strict=True) if w == ANSWER]
    written = "".join(turn.answer + "<|end|>" for turn in dialogue.turns)
    assert encoder.tokenizer.decode(marked) == written


@pytest.mark.parametrize("length", [512, 2048])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fills_rows_of_any_length(family, length):
    encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
    ids, weights = draw_batch(encoder, 4, length, {family: 1}, random.Random(2))
    assert ids.shape == weights.shape == (4, length)
    assert ((weights == ANSWER).sum(1) > 0).all()


def test_rows_too_short_for_a_family_are_refused():
    encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
    with pytest.raises(ValueError, match="niah does not fit into rows of 32 tokens"):
        draw_batch(encoder, 1, 32, {"niah": 1}, random.Random(2))


def test_data_depends_on_the_generator_only():
    encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
    one, two, other = (
        draw_batch(encoder, 3, 128, {"niah": 1, "vt": 1}, random.Random(seed)) for seed in ("a", "a", "b")
    )
    assert (one[0] == two[0]).all()
    assert (one[0] != other[0]).any()


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_resuming_gives_the_same_weights_bit_for_bit(stop, tmp_path):
    """Within a cycle, between two, and within the second."""
    Trainer(read_recipe([*TWO_CYCLES, *places(tmp_path / "whole")])).run()
    broken = Trainer(read_recipe([*TWO_CYCLES, *places(tmp_path / "broken")]))
    for _ in range(stop):
        broken.train_step()
    broken.save()
    Trainer(read_recipe([*TWO_CYCLES, *places(tmp_path / "broken"), "workers=1"])).run()
    one, two = (weights_after(tmp_path / name) for name in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "out")
    AutoTokenizer.from_pretrained(tmp_path / "whole" / "out")


def test_the_second_cycle_starts_from_exported_weights(tmp_path):
    """The first cycle alone, its export, and the second from there: the same as both in one run."""
    Trainer(read_recipe([*TWO_CYCLES, *places(tmp_path / "both")])).run()
    first = Trainer(read_recipe([*TWO_CYCLES, *places(tmp_path / "first")]))
    for _ in range(3):
        first.train_step()
    first.export()
    second = Trainer(read_recipe([*TWO_CYCLES, *places(tmp_path / "second"), f"start={tmp_path}/first/out", "cycle=1"]))
    assert second.step == 3
    second.run()
    one, two = (weights_after(tmp_path / name) for name in ("both", "second"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_rates_of_two_cycles():
    """Warm-up over two steps, decay over the last two to 2%, and again from the start of the second cycle."""
    plan = Plan(read_recipe(TWO_CYCLES).cycles)
    assert [plan.rate(step) for step in range(plan.steps)] == [0.5, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 0.5]
    assert [plan.at(step)[1].lengths[0] for step in range(plan.steps)] == [64] * 5 + [256] * 3
    assert plan.tokens(4) == 4 * 256


def test_balance_weighs_rows_alike(tmp_path):
    """With balance 1 the loss is the mean over rows of each row's mean; with 0 the mean over tokens."""
    trainer = Trainer(read_recipe([*SHORT, *places(tmp_path), "text_loss=0.0", "device=cpu"]))
    ids, weights, draw = trainer.rows[0]
    weights[0, :-4] = 0.0  # a short row
    weights[0, -4:] = ANSWER
    trainer.model.set_attn_implementation("sdpa")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = trainer.model(ids).logits[:, :-1].float()
    each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    rows = [e[w == ANSWER] for e, w in zip(each, weights[:, 1:], strict=True)]
    for balance, expected in ((0.0, torch.cat(rows).mean()), (1.0, torch.stack([r.mean() for r in rows]).mean())):
        with torch.no_grad():
            loss, _ = trainer.loss(ids, weights, draw, balance)
        assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    assert torch.cat(rows).mean().item() != pytest.approx(torch.stack([r.mean() for r in rows]).mean().item(), rel=5e-3)


def test_loss_falls(tmp_path):
    trainer = Trainer(read_recipe([*SHORT, "cycles.0.phases.0.steps=25", *places(tmp_path)]))
    losses = [trainer.train_step()["answer_loss"] for _ in range(25)]
    assert sum(losses[-5:]) / 5 < losses[0] - 1.5


def test_the_small_recipe_trains(tmp_path):
    """Its own shape and lessons, cut down to what a CPU does in seconds."""
    cut = ["model.num_hidden_layers=2", "workers=0", "evaluate_samples=0", "cycles.0.tokens=256", "cycles.0.warmup=2"]
    phases = ["cycles.0.phases=[{steps: 8, lengths: [64], mixture: {bare: 1}}]"]
    trainer = Trainer(read_recipe(["recipe=small", *cut, *phases, *places(tmp_path)]))
    assert len(trainer.plan.cycles) == 1
    losses = [trainer.train_step()["answer_loss"] for _ in range(8)]
    assert sum(losses[-2:]) / 2 < losses[0]


def test_log_is_json_lines(tmp_path):
    Trainer(read_recipe([*SHORT, *places(tmp_path)])).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 6
    assert {"answer_loss", "answer_accuracy", "tokens_per_s"} <= lines[0].keys()


@pytest.mark.parametrize("override", ["sed=1", "cycles.9.muon_lr=1", "cycles.0.phases.9.steps=1", "seed"])
def test_an_unknown_setting_is_named(override):
    with pytest.raises(ValueError, match=r"key=value with a key of train\.yaml"):
        read_recipe([override])


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="choose tiny or small"):
        read_recipe(["recipe=large"])
