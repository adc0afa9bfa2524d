"""Read a checkpoint (folder, GGUF file or hub id): config, tokenizer and weights, or one line that says why not."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
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

from lukv.asked import check_names, check_there, is_gguf, is_local
from lukv.gguf import check_tokenizers, dequantized, read_header

OUT_OF_MEMORY = re.compile("(can't|cannot|unable to) (allocate|mmap).*memory|out of memory", re.IGNORECASE)


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
    check_names(device=name)
    kind, _, number = name.partition(":")
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
        return is_local(self.path, self.made_by)

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
        check_there(self.path, self.made_by, self.holds)
        if not self.local:
            cached = try_to_load_from_cache(self.path, self.holds, revision=self.revision)
            if not isinstance(cached, str) and not hub_answers():
                raise FileNotFoundError(f"model {self.path}: {UNREACHABLE}")

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
