"""GGUF, the one-file format of llama.cpp, as a checkpoint: what is asked of the file before transformers reads it.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: after the magic bytes a header of keys and values, the table
of the tensors, then the tensors. transformers builds the config, the tokenizer and the dequantized weights.
"""

from __future__ import annotations

import mmap
import struct
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

VERSIONS = (2, 3)
SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}  # GGUF's type number -> struct's letter
STRING, ARRAY = 8, 9
ENDS = ("eos", "eot", "eom", "padding")  # end of sequence, of turn, of message; nothing follows a padding token
MOST = 2**24  # entries and dimensions that a sound file stays far below
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling")
"""Names of pre-tokenizers (llama.cpp, src/llama-vocab.cpp): each digit by itself, then as GPT-2; and as GPT-2."""
INSTALL = "pip install 'gguf>=0.17'"


def read_header(path: str | Path) -> dict[str, Any]:
    """The file's keys and values, arrays as their lengths. Raises a one-line ValueError for a file that is not GGUF or
    is damaged in its header, for one that ends before its last tensor does, and where a package is missing."""
    if find_spec("gguf") is None:
        raise ValueError(f"reading a GGUF file needs the package gguf: {INSTALL}")
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it is not a GGUF file: it does not begin with the letters GGUF")
        if size < 24:
            raise ValueError(f"it ends after {size} bytes, within its header")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return Header(content).values


class Header:
    """A cursor over the header; `values` holds what it read."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 4
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"it has version {version} of GGUF: only 2 and 3, little-endian, can be read")
        tensors, pairs = self.count("Q"), self.count("Q")
        self.values = {self.string(): self.value(self.number("I")) for _ in range(pairs)}
        if not isinstance(self.values.get("general.architecture"), str):
            raise ValueError("it names no architecture (general.architecture)")
        end = max((self.tensor() for _ in range(tensors)), default=0)
        if self.at + end > len(content):
            raise ValueError(f"it is cut off: it has {len(content)} bytes, its tensors need {self.at + end}")

    def number(self, letter: str) -> Any:
        width = struct.calcsize("<" + letter)
        self.skip(width)
        return struct.unpack_from("<" + letter, self.content, self.at - width)[0]

    def count(self, letter: str) -> int:
        number = int(self.number(letter))
        if number > MOST:
            raise ValueError(f"its header is damaged: it counts {number} entries")
        return number

    def skip(self, width: int) -> None:
        self.at += width
        if self.at > len(self.content):
            raise ValueError("it is cut off or damaged: it ends within its header")

    def string(self) -> str:
        width = self.count("Q")
        self.skip(width)
        return self.content[self.at - width : self.at].decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"its header is damaged: it has a value of type {kind}")
        kind, entries = self.number("I"), self.count("Q")
        if kind in SCALARS:
            self.skip(entries * struct.calcsize("<" + SCALARS[kind]))
        else:
            for _ in range(entries):
                self.value(kind)
        return entries

    def tensor(self) -> int:
        """Where the tensor ends, in bytes after the header (and some bytes of padding)."""
        from gguf import GGML_QUANT_SIZES

        name = self.string()
        entries = prod(self.number("Q") for _ in range(self.count("I")))
        kind, begin = self.number("I"), self.number("Q")
        if kind not in GGML_QUANT_SIZES:
            raise ValueError(f"its tensor {name[:80]!r} has type {kind}, which the package gguf does not know")
        block, width = GGML_QUANT_SIZES[kind]
        return int(begin + entries // block * width)


def end_ids(header: dict[str, Any]) -> list[int]:
    """Every token id that ends an answer, by the file's tokenizer."""
    ids = {header.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS}
    return sorted(i for i in ids if i is not None)


def dequantized() -> dict[str, Any]:
    """The option of from_pretrained that unpacks the weights into a plain model; older transformers always do."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def check_tokenizers() -> None:
    """Raise ValueError where this transformers is too old to read a file's tokenizer: it took the begin-of-text token
    for the end, and most special tokens for text."""
    if find_spec("transformers.integrations.gguf") is None:
        raise ValueError(
            f"transformers {transformers.__version__} reads a GGUF file's tokenizer wrongly: use transformers>=5.20, "
            "or name another one with model.tokenizer=FOLDER_OR_ID"
        )


def set_pre_tokenizer(tokenizer: Any, header: dict[str, Any]) -> str | None:
    """Split text as the file's `tokenizer.ggml.pre` says, where transformers has no rule for it and takes GPT-2's.

    Only byte-level tokenizers have such rules. Returns a caveat for one that is unknown here, too.
    """
    backend, rule = tokenizer.backend_tokenizer, header.get("tokenizer.ggml.pre")
    if header.get("tokenizer.ggml.model") != "gpt2" or not isinstance(backend.pre_tokenizer, ByteLevel):
        return None  # transformers has a rule
    if rule in SINGLE_DIGITS:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if rule in (*SINGLE_DIGITS, *AS_GPT2):
        return None
    named = "names no pre-tokenizer" if rule is None else f"names the pre-tokenizer {rule!r}, which is not known here"
    return (
        f"the file {named}: texts are split as for GPT-2, perhaps not as the model was trained; "
        "model.tokenizer=FOLDER_OR_ID takes the original checkpoint's tokenizer"
    )
