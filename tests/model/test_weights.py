"""The shipped weights: they load as any model does, and they answer."""

import random

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from models.tiny.data import Encoder
from models.tiny.evaluate import TASKS, evaluate
from models.tiny.tasks import Dialogue
from models.tiny.tokenizer import FOLDER

pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").exists(), reason="no weights: python -m models.tiny.train makes them"
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(FOLDER))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_it_is_an_ordinary_llama_folder(model, encoder):
    config = AutoConfig.from_pretrained(FOLDER)
    assert isinstance(model, LlamaForCausalLM)
    assert config.max_position_embeddings >= 8192
    assert config.vocab_size == len(encoder.tokenizer)
    assert (model.model.layers[0].self_attn.o_proj.bias == 0).all()
    assert model.generation_config.eos_token_id == encoder.end == encoder.tokenizer.eos_token_id
    assert (FOLDER / "model.safetensors").stat().st_size < 5_000_000


def test_autotokenizer_keeps_our_tokenizer_as_it_is(encoder):
    """transformers 5.23 replaces the pre-tokenizer of some model types by the type's own."""
    text = "The special magic number for rainy-endorsement is: 7015227.\n"
    ours = Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert encoder.encode(text) == ours


def test_single_needles_are_found_and_generation_ends(model, encoder):
    rng, found = random.Random("single needles"), 0
    for _ in range(12):
        dialogue = TASKS["single_prose"](380, rng)
        turn = dialogue.turns[0]
        context, _ = encoder.encode_dialogue(Dialogue(dialogue.context, ()), 10**6)
        question, _ = encoder.encode_turn(turn)
        ids = torch.tensor([[*context, *question]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        found += encoder.tokenizer.decode(out[0, ids.shape[1] :]) == turn.answer + "<|end|>"
    assert found >= 9


def test_teacher_forced_scores_of_the_easy_tasks(model, encoder, monkeypatch):
    easy = {name: TASKS[name] for name in ("single_noise", "multikey_prose")}
    monkeypatch.setattr("models.tiny.evaluate.TASKS", easy)
    assert min(evaluate(model, encoder, 512, 12).values()) >= 0.7
