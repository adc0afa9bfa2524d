"""Special tokens typed in a prompt stay text, those of the template stay control tokens, all else stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lukv.model import LoadedModel, load
from lukv.special_tokens import SpecialTokens

TEMPLATE = "{{ bos_token }}{% for m in messages %}<user>{{ m.content }}</s>{% endfor %}<bot>"
LETTERS = "▁ab<s>/uernkot\n?"


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load("models/tiny", device="cpu")


def make(kind: str) -> PreTrainedTokenizerFast:
    """bpe: as Llama 2's tokenizer.json, with pieces that are special tokens. unigram: as T5's. Both have <user>, which
    is not special, beyond the pieces."""
    pieces = ["<unk>", "<s>", "</s>", *LETTERS]
    if kind == "bpe":
        merges = [("<", "s"), ("<s", ">"), ("a", "b"), ("▁", "ab"), ("▁", "▁")]
        extra = ["<s", "ab", "▁ab", "▁▁"]
        vocabulary = {piece: i for i, piece in enumerate([*pieces, *(e for e in extra if e not in pieces)])}
        words = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    else:
        words = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate([*pieces, "ab", "▁ab"])], 0))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.decoder = decoders.Replace("▁", " ")
    added = [
        AddedToken(text, normalized=False, special=text != "<user>")
        for text in ("<unk>", "<s>", "</s>", "<user>", "<bot>", "<bot>b")
    ]
    for token in added:
        words.add_special_tokens([token]) if token.special else words.add_tokens([token])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZERS = {"bpe": make("bpe"), "unigram": make("unigram"), "tiny": AutoTokenizer.from_pretrained("models/tiny")}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_copy_reads_all_other_texts_as_the_tokenizer_does(kind: str, data: st.DataObject) -> None:
    """Pieces of text between control tokens, one text of which ends in a typed special token: up to there the ids are
    the tokenizer's, whatever it does where a text begins and beside control tokens."""
    tokenizer = TOKENIZERS[kind]
    special = SpecialTokens(tokenizer)
    part = st.text(alphabet="ab \n?<", max_size=8) | st.sampled_from(sorted(special.stand_ins))
    text = "".join(data.draw(st.lists(part, max_size=6))) + "\n?"
    typed = tokenizer.eos_token
    whole = special.encode(text + special.hide(typed))
    plain = tokenizer.encode(text, add_special_tokens=False)
    assert special.encode(text) == plain
    assert whole[: len(plain)] == plain
    assert tokenizer.eos_token_id not in whole[len(plain) :]
    assert tokenizer.decode(whole[len(plain) :]).strip() == typed


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_is_typed_is_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    special = SpecialTokens(tokenizer)
    control = {tokenizer.convert_tokens_to_ids(text) for text in special.stand_ins}
    for text in special.stand_ins:
        typed = f"a{text}b {text}{text}"
        ids = special.encode(special.hide(typed))
        assert not control & set(ids)
        assert tokenizer.decode(ids).strip() == typed
        assert control & set(tokenizer.encode(typed, add_special_tokens=False))
        around = special.encode(f"{text}{special.hide(typed)}{text}")
        assert [i for i in around if i in control] == [tokenizer.convert_tokens_to_ids(text)] * 2


def test_the_tokens_of_a_special_token_as_text(tiny: LoadedModel) -> None:
    """The template's last control token stands right before the context, so the rest is the bare text's own tokens."""
    backend = tiny.tokenizer.backend_tokenizer
    text = "One <|end|> two.<|user|>"
    context, after = tiny.prompt_ids(text, "<|begin|>?", "So <|end|>")
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert context == [1, 3, *(token.id for piece in pieces for token in backend.model.tokenize(piece))]
    assert [i for i in after if i < 5] == [2, 4]
    assert tiny.decode(context) == text
    plain, after = tiny.prompt_ids("<|begin|>" + text, "", "", chat=False)
    assert (plain[0], [i for i in (*plain[1:], *after) if i < 5]) == (1, [])
    assert tiny.count_tokens("<|end|>") == len(tiny.text_ids("<|end|>")) > 1


def test_control_tokens_as_in_kvpress(tiny: LoadedModel) -> None:
    control = load("models/tiny", device="cpu", special_tokens="control")
    context, after = control.prompt_ids("One <|end|> two.", "<|begin|>?", "")
    whole = "<|begin|><|user|>One <|end|> two."
    assert context == control.tokenizer.encode(whole, add_special_tokens=False)
    assert [i for i in after if i < 5] == [1, 2, 4]
    assert control.prompt_ids("One.", "?", "") == tiny.prompt_ids("One.", "?", "")
    with pytest.raises(ValueError, match="special_tokens=both is not known: choose one of text, control"):
        load("models/tiny", special_tokens="both")


def test_what_cannot_be_kept_text_is_said(tiny: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"holds the noncharacter U\+FDD0"):
        tiny.prompt_ids("a \ufdd0 b", "?", "")

    class Slow:
        chat_template = None

        @property
        def added_tokens_decoder(self) -> dict[int, AddedToken]:
            return {1: AddedToken("<s>", special=True)}

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [len(text)]

    special = SpecialTokens(Slow())
    assert special.encode(special.hide("no such token")) == [13]
    with pytest.raises(ValueError, match=r"cannot read them as text: use model\.special_tokens=control"):
        special.encode(special.hide("a <s> b"))
