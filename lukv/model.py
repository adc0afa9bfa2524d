"""Load a model with its tokenizer and chat template, and turn a sample's text into token ids."""

from __future__ import annotations

import datetime
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from lukv.backend.architecture import check_architecture
from lukv.backend.attention import use_ragged_attention
from lukv.backend.config import find_windows, hash_config, hash_weights
from lukv.backend.geometry import count_kv_heads
from lukv.backend.kernels import list_kernels, pick
from lukv.backend.self_check import check_model
from lukv.chat import drop_trace, parse_date, render
from lukv.gguf import check_tokenizers, dequantized, end_ids, is_gguf, read_header, set_pre_tokenizer
from lukv.special_tokens import SpecialTokens

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OUT_OF_MEMORY = re.compile("(can't|cannot|unable to) (allocate|mmap).*memory|out of memory", re.IGNORECASE)
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # transformers' warning, marked as given
LAYOUTS = ("apart", "whole", "plain", "bare")
"""How a prompt's parts become token ids: see LoadedModel.prompt_ids."""
SPECIAL_TOKENS = ("text", "control")


@dataclass
class LoadedModel:
    """name: what results call it. path: folder, GGUF file or hub id. attention: the decode kernel asked for. chat:
    whether its chat template, if it has one, is put around prompts. max_length: tokens it takes, None: not known.
    commit: the hub's commit that was read, None for a folder or file. date: what its chat template takes for today,
    None: today. thinking: whether the model may think before it answers. special_tokens: what special tokens typed in a
    prompt are, `text` or `control` tokens. caveats: what makes its results doubtful, each in a line that was logged,
    too."""

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

    def _surround(self, text: str, chat: bool) -> tuple[str, str | None]:
        """(everything up to the end of the text, the rest of the chat template; None where there is no template)."""
        if chat and self.chat and self.tokenizer.chat_template:
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
    thinking, special_tokens: see LoadedModel.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is not known: choose one of auto, {', '.join(DTYPES)}")
    if attention not in ("auto", *list_kernels()):
        raise ValueError(f"attention={attention} is not a kernel: choose one of auto, {', '.join(list_kernels())}")
    if special_tokens not in SPECIAL_TOKENS:
        raise ValueError(f"special_tokens={special_tokens} is not known: choose one of {', '.join(SPECIAL_TOKENS)}")
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
        options = {"config": config, "dtype": DTYPES.get(dtype, torch.bfloat16 if source.header else "auto")}
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
    return LoadedModel(model, words, *about)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """A ValueError inside also says which model it is of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model {path}: {error}") from error


@contextmanager
def enough_memory(path: str, device: str) -> Iterator[None]:
    """What runs out of memory inside, on a GPU or on the CPU, becomes one line that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        said = str(error) or type(error).__name__
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not OUT_OF_MEMORY.search(said):
            raise
        raise ValueError(
            f"model {path}: its weights do not fit into the memory of {device}: use dtype=bfloat16, "
            f"device_map=auto (all GPUs), or a smaller model ({' '.join(said.split())[:120]})"
        ) from error


def torch_device(name: str) -> torch.device:
    """cpu, cuda, cuda:N; auto: cuda if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or number == ""):
        raise ValueError(f"device={name} is not known: choose one of auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise ValueError(f"device={name}, but torch sees {seen} here: use device=cpu or auto")
    return torch.device(name)


def read_config(path: str, **options: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, **options)
    return config


def whole_model(path: str, **options: Any) -> PreTrainedModel:
    """From safetensors only: other formats are pickles. Weights that are missing or of another shape are an error,
    where transformers fills in random numbers. A GGUF file's are dequantized."""
    if "gguf_file" in options:
        options |= dequantized()
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of such weights is a table of many lines
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            attn_implementation="eager",  # replaced by ours, whatever the config names and this machine lacks
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except OSError as error:  # what it says of other formats misleads: they are not looked for
        raise OSError(f"no .safetensors files that can be read (others, pickles, are not): {error}") from error
    finally:
        logging.set_verbosity(loud)
    model: PreTrainedModel
    model, report = loaded
    for fault, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape for")):
        if names := sorted(key if isinstance(key, str) else str(key[0]) for key in report[fault]):
            raise ValueError(f"the checkpoint {what} {len(names)} of the network's tensors, {names[0]} for one")
    return model


def tokenizer_of(path: str, **options: Any) -> Tokenizer:
    """As AutoTokenizer, but a tokenizer.json that is said to be complete is taken as it is, and so is that of a GGUF
    file: for some model types (qwen2, phi3) transformers would put that type's own tokenizer class over it and split
    text otherwise."""
    if "gguf_file" in options:
        check_tokenizers()
        whole = True
    else:
        stated = get_tokenizer_config(path, **options).get("tokenizer_class")
        whole = stated in ("TokenizersBackend", "PreTrainedTokenizerFast")
    tokenizer: Tokenizer = (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(path, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up when the files are missing
        raise ValueError("it has no vocabulary: tokenizer.json is missing or empty")
    return tokenizer


UNREACHABLE = "no such folder, not in the hub's local cache, and the hub cannot be reached"


@dataclass(frozen=True)
class Source:
    """Where a model or tokenizer comes from: a folder or GGUF file is read offline, anything else is a hub id. holds:
    the file that a folder must have."""

    path: str
    revision: str | None = None
    made_by: str | None = None
    holds: str = "config.json"

    @property
    def local(self) -> bool:
        """A folder or file, there or not; anything else is a hub id."""
        named = self.path.startswith((".", "/", "~")) or self.path.count("/") > 1 or is_gguf(self.path)
        return named or self.made_by is not None or Path(self.path).exists()

    @property
    def commit(self) -> str | None:
        """The commit of what was read: the hub's cache has a folder for each."""
        file = None if self.local else try_to_load_from_cache(self.path, "config.json", revision=self.revision)
        return Path(file).parent.name if isinstance(file, str) else None

    @cached_property
    def header(self) -> dict[str, Any] | None:
        """A GGUF file's keys and values, None for what is not one."""
        return read_header(self.path) if is_gguf(self.path) else None

    def read(self, what: str, from_pretrained: Callable[..., Any], **options: Any) -> Any:
        self.must_exist()
        offline = self.local or not hub_answers()
        try:
            with self.place() as place:
                return from_pretrained(**place, local_files_only=offline, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what a broken file does to its many readers has no common kind
            if offline and not self.local:
                raise FileNotFoundError(f"model {self.path}: {UNREACHABLE}") from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"model {self.path}: cannot read its {what}: {reason[:300]}") from error

    def must_exist(self) -> None:
        """Raise FileNotFoundError where nothing is, and for a hub id that is neither on this machine nor to be fetched;
        ValueError for an adapter. Nothing is read."""
        path = Path(self.path)
        if (path / "adapter_config.json").is_file():
            raise ValueError(
                f"model {self.path}: it is a PEFT adapter, not a model: merge it into its model (merge_and_unload) and "
                "save that. Prompt, prefix and P-tuning cannot be merged and are not supported"
            )
        if not self.local:
            cached = try_to_load_from_cache(self.path, self.holds, revision=self.revision)
            if not isinstance(cached, str) and not hub_answers():
                raise FileNotFoundError(f"model {self.path}: {UNREACHABLE}")
            return
        if path.is_file() if is_gguf(path) else (path / self.holds).is_file():
            return
        lacks = f"there is no such {'file' if is_gguf(path) else 'folder'}"
        if path.exists():
            lacks = f"it has no {self.holds}" if path.is_dir() else "it is not a folder"
        instead = "give a folder written by save_pretrained, a file named *.gguf, or a hub id"
        if self.made_by:
            instead = f"make it with: {self.made_by}"
        raise FileNotFoundError(f"model {self.path}: {lacks} ({instead})")

    @contextmanager
    def place(self) -> Iterator[dict[str, Any]]:
        """Where from_pretrained is to look. For a GGUF file that is an empty folder: other files beside it, a
        tokenizer.json for one, would be taken before what the file has."""
        if self.header is None:
            yield {"path": self.path, "revision": self.revision}
            return
        with TemporaryDirectory() as empty:
            yield {"path": empty, "gguf_file": str(Path(self.path).absolute())}


@cache
def hub_answers() -> bool:
    """One quick look, so that a machine without network is not kept waiting by retries."""
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    hub = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((str(hub.hostname), hub.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
