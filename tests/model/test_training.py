"""The training program: its attention, its optimiser, resuming, and that loss falls."""

import json
import random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.tiny.attention import BlockedAttention
from models.tiny.data import ANSWER, Encoder, batch
from models.tiny.model import OFFSETS, config, initialise
from models.tiny.optim import orthogonalise
from models.tiny.tasks import FAMILIES
from models.tiny.tokenizer import FOLDER
from models.tiny.train import Trainer, recipe

SHORT = [
    "phases=[{steps: 6, lengths: [64], mixture: {bare: 1}}]",
    "tokens=256",
    "warmup=2",
    "decay=2",
    "evaluate_every=1000",
    "evaluate_samples=0",
    "checkpoint_every=3",
]


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


def test_chosen_heads_begin_by_looking_back():
    model = initialise(config(300, 1, 2, 0), seed=3).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(torch.randint(5, 300, (1, 40)), output_attentions=True).attentions
    for (layer, kv_head), offsets in OFFSETS.items():
        for query_head, offset in enumerate(offsets):
            weights = attentions[layer][0, 2 * kv_head + query_head]
            looked_at = weights[10:].argmax(-1)
            assert (torch.arange(10, 40) - looked_at == offset).float().mean() > 0.9, (layer, kv_head, query_head)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_marked_and_end(family):
    encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
    dialogue = FAMILIES[family](300, random.Random(1))
    ids, weights = encoder.dialogue(dialogue, 10**6)
    marked = [i for i, w in zip(ids, weights, strict=True) if w == ANSWER]
    written = "".join(turn.answer + "<|end|>" for turn in dialogue.turns)
    assert encoder.tokenizer.decode(marked) == written


def test_data_depends_on_the_generator_only():
    encoder = Encoder(AutoTokenizer.from_pretrained(FOLDER))
    one, two, other = (batch(encoder, 3, 128, {"niah": 1, "vt": 1}, random.Random(seed)) for seed in ("a", "a", "b"))
    assert (one[0] == two[0]).all()
    assert (one[0] != other[0]).any()


def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path):
    places = [[f"work={tmp_path / name}", f"out={tmp_path / name / 'out'}"] for name in ("whole", "broken")]
    whole = Trainer(recipe([*SHORT, *places[0]]))
    whole.run()
    broken = Trainer(recipe([*SHORT, *places[1]]))
    for _ in range(3):
        broken.train_step()
    broken.save()
    Trainer(recipe([*SHORT, *places[1]])).run()
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "broken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "out")
    AutoTokenizer.from_pretrained(tmp_path / "whole" / "out")


def test_loss_falls(tmp_path):
    trainer = Trainer(recipe([*SHORT, "phases.0.steps=25", f"work={tmp_path}", f"out={tmp_path}/out"]))
    losses = [trainer.train_step()["answer_loss"] for _ in range(25)]
    assert sum(losses[-5:]) / 5 < losses[0] - 1.5


def test_log_is_json_lines(tmp_path):
    Trainer(recipe([*SHORT, f"work={tmp_path}", f"out={tmp_path}/out"])).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 6
    assert {"answer_loss", "answer_accuracy", "tokens_per_s"} <= lines[0].keys()


@pytest.mark.parametrize("override", ["sed=1", "phases.9.steps=1", "seed"])
def test_an_unknown_setting_is_named(override):
    with pytest.raises(ValueError, match=r"key=value with a key of train\.yaml"):
        recipe([override])
