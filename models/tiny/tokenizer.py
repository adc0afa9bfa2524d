"""The tokenizer: whole words of RULER's templates, keys and haystacks; letter pairs and bytes for everything else.

    python -m models.tiny.tokenizer            # writes tokenizer.json, tokenizer_config.json beside this file

A key has two tokens (" abject-", "antler"), a 7-digit value three, a 5-letter variable name three, a uuid sixteen. Any
text decodes exactly: words outside the vocabulary are spelt in pairs of letters or in bytes.
"""

from __future__ import annotations

import re
import string
from importlib import resources
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evals.ruler import templates
from evals.ruler.prose import VOCABULARY

FOLDER = Path(__file__).parent
PAD, BEGIN, END, USER, ASSISTANT = SPECIALS = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

HEX = "[0-9a-f]"
PHRASES = (" is: ", ": ", "VAR ", " = ", ", ", ". ", "...")
"""Separators that are one token, so that the blank before digits and names is not a token of its own."""

PIECES = "|".join([
    rf"{HEX}{{2}}-?(?=(?:{HEX}{{2}}){{0,3}}-?(?:{HEX}{{4}}-){{0,3}}{HEX}{{12}})",  # the first four groups of a uuid
    *(rf"(?<=-{HEX}{{4}}-{f'{HEX}' * 2 * done}){HEX}{{2}}" for done in range(6)),  # its last group
    r" is: (?=[0-9a-z])", r"VAR (?=[A-Z])", r" = (?=[0-9A-Z])", r", (?=[0-9])", r"\. (?=[a-z])", r" ?\.\.\.",
    r"[A-Z]{2}", r"[0-9]{1,3}",
    r" [a-z]+-(?=[a-z:])",  # an adjective that begins a key
    r"(?<=-): ",
    r" ?(?:[A-Z][a-z]+|[a-z]+|[A-Z](?![A-Z]))",
    r" ?[^A-Za-z0-9\s]", r"\n", r"\s",
])  # fmt: skip


def word_list(kind: str) -> list[str]:
    """wonderwords' noun, adjective or verb list, as RULER reads it."""
    return (resources.files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8").split("\n")


def vocabulary() -> list[str]:
    """Every token that is not a single byte, as plain text, without duplicates, in a fixed order."""
    text = " ".join(value for name, value in vars(templates).items() if name.isupper() and isinstance(value, str))
    text = re.sub(r"\{\w+\}", " ", " ".join([text, *templates.VT_PREFIX.values()]))
    template_words = sorted(set(re.findall(r"[A-Za-z][a-z]*", text)) | {"number", "numbers", "uuid", "uuids", "Some"})
    plain = re.compile(r"[a-z]+")
    nouns, adjectives = (sorted(filter(plain.fullmatch, word_list(kind))) for kind in ("noun", "adjective"))
    tokens = [
        *PHRASES,
        " ...",
        " (",
        " '",
        *template_words,
        *(f" {word}" for word in template_words),
        *VOCABULARY,
        *(f" {word}" for word in VOCABULARY),
        *(f"{number:0{digits}d}" for digits in (2, 3) for number in range(10**digits)),
        *(high + low + dash for high, low, dash in product("0123456789abcdef", "0123456789abcdef", ("", "-"))),
        *map("".join, product(string.ascii_lowercase, repeat=2)),
        *map("".join, product(string.ascii_uppercase, repeat=2)),
        *(f" {word}-" for word in adjectives),
        *nouns,
    ]
    return list(dict.fromkeys(token for token in tokens if len(token) > 1))


def build() -> Tokenizer:
    """A BPE tokenizer that takes known words whole (`ignore_merges`). Its only merges are pairs of small letters."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = ["".join(piece for piece, _ in spell.pre_tokenize_str(token)) for token in vocabulary()]
    vocab = {token: index for index, token in enumerate([*SPECIALS, *alphabet, *whole])}
    merges = list(product(string.ascii_lowercase, repeat=2))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), spell])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    begin = [(BEGIN, vocab[BEGIN])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=begin)
    return tokenizer


def save(folder: Path = FOLDER) -> PreTrainedTokenizerFast:
    """Write the files that AutoTokenizer reads."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build(),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    return tokenizer


if __name__ == "__main__":
    print(f"{len(save())} tokens in {FOLDER}")
