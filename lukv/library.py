"""The library: a transformers model, a tokenizer and texts in; a compressed cache and answers out.

What run.py does with a benchmark's samples, for texts and models at hand. Prompts are made as the evaluation makes them
(LoadedModel.prompt_ids), and the model is given back as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, overload

from lukv.backend import cache_file, generate
from lukv.backend.cache import RaggedCache
from lukv.backend.lend import lend_attention
from lukv.backend.options import CACHE
from lukv.model import AnyModel, LoadedModel, Tokenizer
from lukv.named import check_fits, describe
from lukv.selection import Eviction


@contextmanager
def eviction(model: AnyModel, method: Eviction | None) -> Iterator[None]:
    """Inside, `model.generate(...)` evicts the prompt's cache by `method` (None keeps everything).

    Batches with left padding and sampling work as without it. Every call has a cache of its own. Afterwards the model
    is as it was, also after an exception. Raises ValueError for a method or a model that cannot be run, RuntimeError
    where this model is in such a block already.
    """
    named = describe(model)
    network = named.model
    with lend_attention(network):
        if method is not None:
            check_fits(method, named)
        own = vars(network)
        generate_plainly: Any = network.generate
        before = own.get("generate")

        @wraps(generate_plainly)
        def generate_evicted(*args: Any, **kwargs: Any) -> Any:
            given = [name for name in ("cache", "past_key_values") if kwargs.get(name) is not None]
            if given:
                raise ValueError(f"leave out {given[0]}: `with lukv.eviction(...)` makes the cache")
            cache = RaggedCache(network, method)
            return generate_plainly(*args, **{CACHE: cache}, **kwargs)

        own["generate"] = generate_evicted  # the only door by which generate takes a cache is its argument
        try:
            yield
        finally:
            if before is None:
                del own["generate"]
            else:
                own["generate"] = before


def compress(
    model: AnyModel,
    tokenizer: Tokenizer,
    context: str | Sequence[str],
    method: Eviction | None,
    chunk: int | None = None,
) -> RaggedCache:
    """Read a context, or a batch of contexts, and keep of its cache what `method` keeps (None: everything).

    With a chat template the context is the beginning of the user's message, up to the end of its text. chunk: tokens
    that are run through the model at a time, which bounds the memory of a long context; None: all. Raises
    ValueError for a context that is empty or longer than the model takes, and for what the model cannot be asked.
    """
    loaded = pair(model, tokenizer)
    texts = [context] if isinstance(context, str) else list(context)
    if not texts:
        raise ValueError("no context: give a text or a list of texts")
    rows = [loaded.prompt_ids(text, "?", "")[0] for text in texts]  # they do not depend on the question
    return compress_rows(loaded, rows, method, chunk)


def compress_rows(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], method: Eviction | None, chunk: int | None = None
) -> RaggedCache:
    """The same for contexts as token ids."""
    check_length(loaded, max(map(len, rows)), "the context")
    with lend_attention(loaded.model):
        if method is not None:
            check_fits(method, loaded)
        return generate.compress(loaded, rows, eviction=method, chunk=chunk)


@overload
def answer(
    model: AnyModel,
    tokenizer: Tokenizer,
    cache: RaggedCache,
    question: str,
    max_new_tokens: int = ...,
    answer_prefix: str = ...,
) -> str: ...


@overload
def answer(
    model: AnyModel,
    tokenizer: Tokenizer,
    cache: RaggedCache,
    question: list[str],
    max_new_tokens: int = ...,
    answer_prefix: str = ...,
) -> list[str]: ...


def answer(
    model: AnyModel,
    tokenizer: Tokenizer,
    cache: RaggedCache,
    question: str | list[str],
    max_new_tokens: int = 64,
    answer_prefix: str = "",
) -> str | list[str]:
    """The greedy answer to a question about the cache's one context; to a list of questions, one about each context.

    Afterwards the cache is as it was before: ask again. The question and the rest of the chat template are not
    compressed. answer_prefix: how the answer begins; it is given to the model and no part of what is returned. Raises
    ValueError for an empty question or a number of questions that is not that of the contexts.
    """
    loaded = pair(model, tokenizer)
    questions = [question] if isinstance(question, str) else question
    rows = [question_ids(loaded, text, answer_prefix) for text in questions]
    texts = answer_rows(loaded, cache, rows, max_new_tokens)
    return texts[0] if isinstance(question, str) else texts


def answer_rows(
    loaded: LoadedModel, cache: RaggedCache, rows: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """The same for questions as token ids, with the rest of the chat template."""
    check_room(loaded, cache, rows, max_new_tokens)
    with lend_attention(loaded.model):
        try:
            said = generate.answer(loaded, cache, rows, max_new_tokens, loaded.eos_ids)
        finally:
            cache.rollback()
    return [loaded.decode(tokens) for tokens in said.tokens]


def stream_answer(
    model: AnyModel,
    tokenizer: Tokenizer,
    cache: RaggedCache,
    question: str,
    max_new_tokens: int = 64,
    answer_prefix: str = "",
) -> Iterator[str]:
    """The same answer, piece by piece as it is decoded: joined, the pieces are what `answer` returns.

    Until the last piece, or until the iterator is closed, the model is in use.
    """
    loaded = pair(model, tokenizer)
    row = question_ids(loaded, question, answer_prefix)
    check_room(loaded, cache, [row], max_new_tokens)
    return stream_text(loaded, cache, row, max_new_tokens)


def stream_text(loaded: LoadedModel, cache: RaggedCache, question: list[int], max_new_tokens: int) -> Iterator[str]:
    said, tokens = "", list[int]()
    with lend_attention(loaded.model):
        try:
            for token in generate.decode(loaded, cache, question, max_new_tokens, loaded.eos_ids):
                tokens.append(token)
                text = loaded.decode(tokens)
                if len(text) > len(said) and not text.endswith("\ufffd"):  # the first bytes of a character
                    yield text[len(said) :]
                    said = text
            if rest := loaded.decode(tokens)[len(said) :]:
                yield rest
        finally:
            cache.rollback()


def save_cache(cache: RaggedCache, path: str | Path) -> None:
    """Write a compressed cache as one safetensors file."""
    cache_file.save(cache, path)


def load_cache(path: str | Path, model: AnyModel) -> RaggedCache:
    """The cache that `save_cache` wrote, for the same model. Raises FileNotFoundError, or ValueError for a file that is
    broken or belongs to another model."""
    network = describe(model).model
    with lend_attention(network):
        return cache_file.load(path, network)


def pair(model: AnyModel, tokenizer: Tokenizer) -> LoadedModel:
    """The model with its tokenizer. A LoadedModel keeps what it was loaded with."""
    if isinstance(model, LoadedModel):
        return model
    named = describe(model)
    longest = getattr(named.config, "max_position_embeddings", None)
    return LoadedModel(named.model, tokenizer, named.name, named.path, named.config_hash, max_length=longest)


def question_ids(loaded: LoadedModel, question: str, answer_prefix: str) -> list[int]:
    """Token ids of what comes after a context, whatever that is."""
    if not question + answer_prefix and not (loaded.chat and loaded.tokenizer.chat_template):
        raise ValueError("the question is empty, and without a chat template nothing else follows the context")
    return loaded.prompt_ids("x", question, answer_prefix)[1]


def check_room(loaded: LoadedModel, cache: RaggedCache, rows: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if len(rows) != len(cache.tokens):
        raise ValueError(
            f"{len(rows)} questions for {len(cache.tokens)} contexts: give a list with one for each. More "
            "about the same contexts: call again"
        )
    longest = max(int(seen) + len(row) for seen, row in zip(cache.tokens, rows, strict=True))
    check_length(loaded, longest + max_new_tokens, "context, question and answer")


def check_length(loaded: LoadedModel, tokens: int, what: str) -> None:
    if loaded.max_length is not None and tokens > loaded.max_length:
        raise ValueError(f"{what}: {tokens} tokens, {loaded.name} takes {loaded.max_length}")
