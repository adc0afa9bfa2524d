"""Every text comes back exactly, and what evaluation writes costs few tokens."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from evals.ruler import templates
from evals.ruler.prose import VOCABULARY, prose
from models.tiny.tasks import FAMILIES
from models.tiny.tokenizer import FOLDER, SPECIALS, build, word_list

TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def comes_back(text: str) -> bool:
    return TOKENIZER.decode(ids(text)) == text


@given(st.text())
def test_any_unicode_text_round_trips(text):
    assert comes_back(text)


@given(st.text(alphabet=string.ascii_letters + string.digits + " .,:-=\n\t'()é", max_size=200))
@settings(max_examples=500)
def test_text_of_the_characters_that_the_rules_are_about_round_trips(text):
    assert comes_back(text)


@given(st.uuids(), st.integers(), st.sampled_from([" ", "\n", "", "-", " is: "]))
def test_uuids_and_numbers_round_trip(uuid, number, between):
    assert comes_back(f"One{between}{uuid}{between}{number}.")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_families_write_round_trips(family):
    rng = random.Random(5)
    for _ in range(20):
        dialogue = FAMILIES[family](300, rng)
        assert comes_back(dialogue.context)
        for turn in dialogue.turns:
            assert all(map(comes_back, (turn.question, turn.prefix, turn.answer)))


def test_templates_prose_and_word_lists_round_trip():
    texts = [value for value in vars(templates).values() if isinstance(value, str)]
    words = [word for kind in ("noun", "adjective", "verb") for word in word_list(kind)]
    for text in [*texts, " ".join(words), "\n".join(words), "-".join(words), prose(2000, random.Random(3))]:
        assert comes_back(text)


def test_prose_is_one_token_a_word():
    text = prose(3000, random.Random(4))
    assert len(ids(text)) == len(text.split()) + text.count(".")
    assert set(text.replace(".", "").split()) <= set(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (" abject-antler", 2),
        ("One of the special magic numbers for abject-antler is: 1234567.", 14),
        ("VAR ABCDE = VAR FGHIJ", 9),
        ("12345", 2),
        ("f81d4fae-7dec-41d0-a765-00a0c91e6bf6", 16),
        (templates.NOISE, 24),
    ],
)
def test_token_counts(text, count):
    assert len(ids(text)) == count


def test_chat_template_puts_the_context_between_begin_and_end():
    message = {"role": "user", "content": "Hello."}
    text = TOKENIZER.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|user|>Hello.<|end|><|assistant|>"
    assert [TOKENIZER.decode([i]) for i in ids(text)][:2] == ["<|begin|>", "<|user|>"]
    assert TOKENIZER.encode("x")[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids(text), skip_special_tokens=True) == "Hello."


def test_the_shipped_file_is_what_the_script_builds():
    built = build()
    assert built.get_vocab() == TOKENIZER.get_vocab()
    assert [built.token_to_id(token) for token in SPECIALS] == list(range(len(SPECIALS)))
    text = prose(200, random.Random(6)) + " ABCDE = 1234567 9f"
    assert built.encode(text, add_special_tokens=False).ids == ids(text)
