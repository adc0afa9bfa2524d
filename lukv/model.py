"""Load a model with its tokenizer and chat template, and turn a sample's text into token ids."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from lukv.asked import DTYPES, check_chunk, check_names
from lukv.backend.architecture import check_architecture
from lukv.backend.attention import use_ragged_attention
from lukv.backend.config import find_windows, hash_config, hash_weights
from lukv.backend.geometry import count_kv_heads
from lukv.backend.kernels import pick
from lukv.backend.self_check import check_model
from lukv.chat import drop_trace, parse_date, render, render_turn
from lukv.checkpoint import Source, enough_memory, read_config, tokenizer_of, torch_device, whole_model
from lukv.gguf import end_ids, set_pre_tokenizer
from lukv.scoring import Prompt
from lukv.special_tokens import SpecialTokens

TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # transformers' warning, marked as given
LAYOUTS = ("apart", "whole", "plain", "bare")
"""How a prompt's parts become token ids: see LoadedModel.prompt_ids."""


class Network:
    """What methods and their tables ask of a model, by itself."""

    model: PreTrainedModel

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config.get_text_config(decoder=True)

    @property
    def layers(self) -> int:
        """Layers that can be evicted: those with full attention."""
        return find_windows(self.config).count(None)

    @cached_property
    def kv_heads(self) -> int:
        """KV heads of each layer that can be evicted."""
        return count_kv_heads(self.model)

    @cached_property
    def weights_hash(self) -> str:
        return hash_weights(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device


@dataclass
class NamedModel(Network):
    """A transformers model that somebody else has loaded. name: what messages call it. path: where it was loaded from,
    as far as its config says it."""

    model: PreTrainedModel
    name: str
    path: str

    @cached_property
    def config_hash(self) -> str:
        return hash_config(self.model.config)


@dataclass
class LoadedModel(Network):
    """name: what results call it. path: folder, GGUF file or hub id. attention: the decode kernel asked for. chat:
    whether its chat template, if it has one, is put around prompts. max_length: tokens it takes, None: not known.
    commit: the hub's commit that was read, None for a folder or file. date: what its chat template takes for today,
    None: today. thinking: whether the model may think before it answers. special_tokens: what special tokens typed in a
    prompt are, `text` or `control` tokens. caveats: what makes its results doubtful, each in a line that was logged,
    too. prefill_chunk: tokens of a prompt that are run through it at a time, None: all."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    name: str
    path: str
    config_hash: str
    attention: str = "auto"
    chat: bool = True
    max_length: int | None = None
    commit: str | None = None
    date: datetime.date | None = None
    thinking: bool = False
    special_tokens: str = "text"
    caveats: tuple[str, ...] = ()
    prefill_chunk: int | None = None

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer, by the generation config and the tokenizer."""
        generation = getattr(self.model.generation_config, "eos_token_id", None)
        ids = generation if isinstance(generation, list) else [generation]
        return tuple(sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}))

    def prompt_ids(
        self, context: str, question: str, answer_prefix: str, chat: bool = True, layout: str = "apart"
    ) -> tuple[list[int], list[int]]:
        """Token ids of (the part that is compressed, the part after it).

        apart: with a chat template the context is the user's message: everything up to the end of its text is
        compressed (BOS and system header included), then come the question, the rest of the template and the answer
        prefix. Without one (or chat=False): BOS + context, then question + newline + prefix. The parts are tokenized
        apart, so that the compressed part does not depend on the question. (kvpress's protocol.) A model that may think
        gets no answer prefix, which would be in the trace.

        whole: all three are one text, the user's message where there is a chat template, and tokenized as one. It is
        cut behind the last token that the context would have without the question: a token that holds characters of
        both comes after. The two parts together are the prompt of a model that is asked without compression.

        plain: BOS and the context, then question and prefix, tokenized apart, without chat template or newline.
        bare: the same without BOS.

        Where nothing comes after the context, its last token is what the model is asked with. Raises a one-line
        ValueError for an unknown layout and for what cannot be asked: a template that fails on this text, a context
        without a token, a token that the model does not have.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r} is not known: choose one of {', '.join(LAYOUTS)}")
        if self.special_tokens == "text":
            context, question, answer_prefix = map(self._special.hide, (context, question, answer_prefix))
        after = question + answer_prefix
        if layout in ("plain", "bare"):
            head = context if layout == "bare" else self._begin(context)
            ids, rest = self._ids(head), self._ids(after)
        elif layout == "whole" and after:
            head, tail = self._surround(context + after, chat)
            ids = self._ids(head)
            cut = min(common_start(ids, self._ids(self._surround(context, chat)[0])), len(ids) - 1)
            ids, rest = ids[:cut], ids[cut:] + self._ids(tail or "")
        else:
            head, tail = self._surround(context, chat)
            if tail is not None:
                after = question + tail + ("" if self.thinking else answer_prefix)
            elif after:
                after = f"{question}\n{answer_prefix}"
            ids, rest = self._ids(head), self._ids(after)
        if not rest:
            ids, rest = ids[:-1], ids[-1:]
        if not ids:
            raise ValueError("the context has no token that could be compressed")
        return ids, rest

    def turn_ids(self, question: str, answer_prefix: str, chat: bool = True) -> list[int]:
        """Token ids that follow an answer where a conversation goes on: the end of the assistant's turn, the next
        question, the rest of the template and the answer prefix. Without a template: question and prefix, each on a
        line of its own. Raises a one-line ValueError for a template that does not take a second turn."""
        if self.special_tokens == "text":
            question, answer_prefix = map(self._special.hide, (question, answer_prefix))
        if not (chat and self._has_template):
            return self._ids(f"\n{question}\n{answer_prefix}")
        head, tail = render_turn(self.tokenizer, question, self.thinking, self.date)
        return self._ids(head + tail + ("" if self.thinking else answer_prefix))

    def _surround(self, text: str, chat: bool) -> tuple[str, str | None]:
        """(everything up to the end of the text, the rest of the chat template; None where there is no template)."""
        if chat and self._has_template:
            return render(self.tokenizer, text, self.thinking, self.date)
        return self._begin(text), None

    def _begin(self, text: str) -> str:
        """The text with the beginning-of-sequence token in front, if the tokenizer has one and the text does not."""
        bos = self.tokenizer.bos_token or ""
        return text if text.startswith(bos) else bos + text

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text that stands by itself, without BOS and template, as a reference answer does."""
        return self._ids(self._special.hide(text) if self.special_tokens == "text" else text)

    @cached_property
    def _special(self) -> SpecialTokens:
        return SpecialTokens(self.tokenizer)

    @cached_property
    def _rows(self) -> int:
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def _ids(self, text: str) -> list[int]:
        ids = self._special.encode(text)
        if ids and max(ids) >= self._rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"token {max(ids)} ({token}) is beyond the {self._rows} rows of the embedding of {self.path}: "
                "name the tokenizer that belongs to it with model.tokenizer=FOLDER_OR_ID"
            )
        return ids

    def describe_prompt(self, ids: Sequence[int]) -> Prompt:
        """What scorers that ask for extra passes are told of a prompt, from its token ids alone.

        It is taken for a user's turn if it begins as the chat template does. The template's last token may differ, as
        it may be one with the text's first. Otherwise there is no head, and a newline for tail.
        """
        head, tail = self._template
        start = common_start(ids, head)
        if not self._has_template or start < len(head) - 1:
            return Prompt(tuple(ids), self.text_ids, 0, tuple(self._ids("\n")))
        return Prompt(tuple(ids), self.text_ids, start, tail)

    @property
    def _has_template(self) -> bool:
        return bool(self.chat and self.tokenizer.chat_template)

    @cached_property
    def _template(self) -> tuple[list[int], tuple[int, ...]]:
        """Token ids of the chat template around a user's text; none where there is no template."""
        if not self._has_template:
            return [], ()
        head, tail = render(self.tokenizer, "x", self.thinking, self.date)
        return self._ids(head.removesuffix("x")), tuple(self._ids(tail))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self.text_ids(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without special tokens and without a trace: that is no answer."""
        answer, thought = drop_trace(list(tokens), lambda ids: str(self.tokenizer.decode(ids)))
        text = str(self.tokenizer.decode(answer, skip_special_tokens=True))
        return text.lstrip() if thought else text

    def stop_at(self, strings: Sequence[str]) -> Callable[[list[int]], bool] | None:
        """For `answer`: has one of these strings appeared in the answer so far? None without strings."""
        if not strings:
            return None
        return lambda tokens: any(string in self.decode(tokens) for string in strings)


AnyModel = PreTrainedModel | LoadedModel
"""What the library takes for a model: one of transformers (also in PEFT's wrapper), or one that `load` has loaded."""


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements two sequences have in common before they first differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def load(
    path: str | Path,
    name: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attention: str = "auto",
    revision: str | None = None,
    chat: bool = True,
    max_length: int | None = None,
    tokenizer: str | Path | None = None,
    made_by: str | None = None,
    date: str | None = None,
    check: bool = True,
    thinking: bool = False,
    special_tokens: str = "text",
    prefill_chunk: int | None = None,
) -> LoadedModel:
    """Load a folder as `save_pretrained` writes it, a GGUF file, or a hub id. Raises one-line FileNotFoundError or
    ValueError.

    A GGUF file is dequantized into a plain model. dtype: float32, bfloat16, float16, float64, or auto (the checkpoint's
    own; bfloat16 for a GGUF file). device: cpu, cuda, cuda:N, or auto (cuda
    if there is one). device_map: "auto" spreads the layers over all GPUs (needs accelerate) and rules out `device`.
    attention: a decode kernel of lukv.backend.kernels, or auto. chat, max_length: see LoadedModel; by default a model
    takes as many tokens as its config has positions. tokenizer: a folder, GGUF file or hub id to take the tokenizer and
    its chat template from, instead of the model's own. made_by: the command that makes the folder or file, for the
    message where it is missing. date: YYYY-MM-DD, for chat templates that say today's date; by default it is today's.
    check: compare a few tokens with transformers' own attention first, once for each config (backend/self_check.py).
    thinking, special_tokens, prefill_chunk: see LoadedModel.
    """
    check_names(dtype, attention, device, special_tokens)
    check_chunk(prefill_chunk)
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length} must be at least 1")
    day = parse_date(date)
    place, path = torch_device(device), str(path)
    if Path(path).exists():  # nothing to download: a bar of milliseconds only hides what is said
        logging.disable_progress_bar()
    source = Source(path, revision, made_by)
    config = source.read("configuration", read_config)
    with naming(path):  # before its weights are read
        check_architecture(config)
    its_source = source if tokenizer is None else Source(str(tokenizer), holds="tokenizer_config.json")
    words = its_source.read("tokenizer", tokenizer_of)
    caveat = set_pre_tokenizer(words, its_source.header) if its_source.header else None
    caveats = () if caveat is None else (f"model {its_source.path}: {caveat}",)
    for line in caveats:
        getLogger(__name__).warning(line)
    if chat and words.chat_template:  # one that cannot be used is said before weights are read
        with naming(its_source.path):
            render(words, "x", thinking, day)
    with enough_memory(path, str(place)):
        options = {"config": config, "dtype": torch_dtype(dtype, torch.bfloat16 if source.header else "auto")}
        model = source.read("weights", whole_model, device_map=device_map, **options)
        if device_map is None:
            model = model.to(place)
    if source.header:
        model.generation_config.eos_token_id = end_ids(source.header)
    with naming(path):
        use_ragged_attention(model.eval())
        if check:
            check_model(model)
    if attention != "auto":  # what the device or a missing package forbids is said now, the rest by each layer
        pick(attention, model.device, model.dtype, head_dim=64, value_dim=64)
    longest = max_length or getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is not None:  # benchmarks that cut prompts ask the tokenizer, and many do not know
        words.model_max_length = min(words.model_max_length, longest)
    words.deprecation_warnings[TOO_LONG] = True  # texts are cut, and prompts that are too long refused, elsewhere
    label = name or Path(path).name or path
    kind = hash_config(model.config)
    about = (label, path, kind, attention, chat, longest, source.commit, day, thinking, special_tokens, caveats)
    return LoadedModel(model, words, *about, prefill_chunk=prefill_chunk)


def torch_dtype(name: str, auto: Any) -> Any:
    """The torch.dtype of this name."""
    return getattr(torch, name) if name in DTYPES else auto


@contextmanager
def naming(path: str) -> Iterator[None]:
    """A ValueError inside also says which model it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model {path}: {error}") from error
