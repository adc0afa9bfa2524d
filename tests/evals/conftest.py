"""Tokenizers: one made of nothing, and those of the golden cases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def golden(name: str) -> list[Any]:
    """The cases of a golden file, to run a test on each. Where the file is absent there is one case of nothing: the
    test asks for the fixture `shared`, which skips it or, in CI, fails it."""
    path = SHARED / "golden" / name
    if not path.is_file():
        return [pytest.param(None, id="absent")]
    return list(read_jsonl(path))


class Words:
    """A tokenizer of words, punctuation and line ends; decoding gives the text back."""

    def __init__(self) -> None:
        self.known: list[str] = ["<bos>"]
        self.number = {"<bos>": 0}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [0] if add_special_tokens else []
        for piece in re.findall(r" ?\w+|\s|[^\w\s]", text):
            if piece not in self.number:
                self.number[piece] = len(self.known)
                self.known.append(piece)
            ids.append(self.number[piece])
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self.known[i] for i in token_ids if not (skip_special_tokens and i == 0))


@pytest.fixture
def words() -> Words:
    return Words()


class Llama3:
    """Llama 3's tokenizer without special tokens, read by tiktoken."""

    PATTERN = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )

    def __init__(self, path: Path) -> None:
        tiktoken = pytest.importorskip("tiktoken")
        from tiktoken.load import load_tiktoken_bpe

        self.coder = tiktoken.Encoding(
            "llama3", pat_str=self.PATTERN, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens={}
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.coder.encode(text, disallowed_special=())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return self.coder.decode(token_ids)


@pytest.fixture(scope="session")
def llama3(shared: Path) -> Llama3:
    return Llama3(shared / "data/ruler/llama3_tokenizer.model")


@pytest.fixture(scope="session")
def bpe8k(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "golden/tokenizer_bpe8k")


class Chat(Words):
    """A tokenizer that knows its model's window, and a chat template of `length` words around the message."""

    chat_template = "a template"

    def __init__(self, window: int, length: int) -> None:
        super().__init__()
        self.model_max_length = window
        self.around = [" system"] * (length // 2), [" assistant"] * (length - length // 2)

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        head, tail = self.around
        return "".join([*head, " ", messages[0]["content"], *tail])
