"""Compress a context once, ask questions about it, roll back: greedy decoding, one sequence or a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.allocation import round_half_up
from lukv.backend.cache import RaggedCache
from lukv.backend.rope_check import check_rotation
from lukv.eviction import Eviction
from lukv.scoring import Scorer


class Loaded(Protocol):
    """What is used of a lukv.model.LoadedModel."""

    model: PreTrainedModel
    attention: str


STAYING = 0.75
"""Rows that have ended leave a batch once no more than this share of it is running."""

Stop = Callable[[list[int]], bool]
"""The answer so far (token ids of one row) -> is it finished? For stop strings: LoadedModel.stop_at(strings)."""


LOOK = {"cuda": 8}
"""Steps between two looks at the chosen tokens, by device: to look is to wait for a GPU. A CPU is looked at each step;
so is everything that a token decides on (stop, pick, min_new_tokens)."""


@dataclass(frozen=True)
class Answer:
    """tokens: what each row answered, end-of-text token not included. ttft_s: from the question to the first token, the
    question's own prefill included. tpot_s: mean time of a further token (0 with a single one). steps: tokens
    decoded, those past the last row's end included."""

    tokens: list[list[int]]
    ttft_s: float
    tpot_s: float
    steps: int


@torch.no_grad()
def compress(
    model: PreTrainedModel | Loaded,
    input_ids: Tensor | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    eviction: Eviction | None = None,
    attention: str | None = None,
    chunk: int | None = None,
    *,
    observe: Sequence[Scorer] = (),
    record_queries: bool = False,
    later: Eviction | None = None,
    every: int | None = None,
) -> RaggedCache:
    """Prefill the contexts once and evict layer by layer: at most one layer's full keys and values are alive at a time.

    input_ids: token ids of each row, as lists of any length or as a tensor [B, T] with attention_mask [B, T] (1:
    token). eviction: None keeps everything. attention: the decode kernel; None: what the model was loaded with. chunk:
    run the prompt through the model in pieces of that many tokens (bounded activation memory, same result; but all
    layers hold all their keys and values until the last piece). The rest: see RaggedCache.
    """
    network = network_of(model)
    check_rotation(network, [*observe, *(e.scorer for e in (eviction, later) if e is not None)])
    ids, mask = left_padded(input_ids, attention_mask, network.device)
    cache = RaggedCache(
        network,
        eviction,
        observe=observe,
        attention=attention or str(getattr(model, "attention", "auto")),
        prompt_columns=ids.shape[1],
        record_queries=record_queries,
        later=later,
        every=every,
    )
    for piece in pieces(ids.shape[1], chunk):
        feed(network, cache, ids, mask, piece)
    return cache


@torch.no_grad()
def stream(
    model: PreTrainedModel | Loaded,
    input_ids: Tensor | Sequence[Sequence[int]],
    eviction: Eviction,
    block: int = 128,
    attention: str | None = None,
) -> RaggedCache:
    """Evict while the prompt streams in: the cache never holds more than the budget and one block (KeyDiff's own form).

    Not what `compress` computes: later tokens attend to a prompt that is evicted already, and a token is judged by what
    came up to then. From the first block on the budget is that of the row's whole prompt. Rows of any length; each gets
    what it would get alone.
    """
    network = network_of(model)
    check_rotation(network, [eviction.scorer])
    ids, mask = left_padded(input_ids, None, network.device)
    rows = [row if mask is None else row[mask[i].bool()] for i, row in enumerate(ids)]
    budget = eviction.budget
    cache = RaggedCache(
        network,
        attention=attention or str(getattr(model, "attention", "auto")),
        later=eviction,
        sizes=[max(1, round_half_up(budget.of(len(row)) * len(row))) for row in rows],
        every=block,
        stream=True,
    )
    for piece in pieces(ids.shape[1], block):
        feed(network, cache, *padded([row[piece] for row in rows]), slice(None))
    cache.evict_again()
    cache.plan.every = None  # the answer is not evicted
    return cache


def pieces(columns: int, size: int | None) -> list[slice]:
    size = columns if size is None else size
    if size < 1:
        raise ValueError(f"chunk={size} must be at least 1")
    return [slice(a, min(a + size, columns)) for a in range(0, columns, size)]


@torch.no_grad()
def append(model: PreTrainedModel | Loaded, cache: RaggedCache, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Append token ids (one list a row, of any length >= 1) -> logits [B, vocabulary] after each row's last token."""
    network = network_of(model)
    padded, mask = left_padded(ids, None, network.device)
    return feed(network, cache, padded, mask, slice(0, padded.shape[1]))


def network_of(model: PreTrainedModel | Loaded) -> PreTrainedModel:
    return model if isinstance(model, PreTrainedModel) else model.model


def feed(model: PreTrainedModel, cache: RaggedCache, ids: Tensor, mask: Tensor | None, columns: slice) -> Tensor:
    """One forward of some columns of left-padded ids [B, T] after what the cache has seen -> logits [B, vocabulary]."""
    seen, piece = cache.get_seq_length(), ids[:, columns]
    if seen and len(ids) != len(cache.tokens):
        raise ValueError(f"this cache holds {len(cache.tokens)} sequences, the input has {len(ids)}")
    valid = None if mask is None else mask[:, columns]
    ahead = torch.arange(piece.shape[1], device=ids.device) if valid is None else (valid.cumsum(-1) - 1).clamp(min=0)
    tokens = torch.from_numpy(cache.tokens).to(ids.device)[:, None] if seen else ids.new_zeros(len(ids), 1)
    logits = model(
        input_ids=piece,
        attention_mask=None if valid is None else torch.cat([valid.new_ones(len(ids), seen), valid], dim=1),
        position_ids=tokens + ahead,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    if cache.get_seq_length() != seen + piece.shape[1]:
        raise RuntimeError(f"{type(model).__name__} dropped the cache it was given")
    return logits


@torch.no_grad()
def answer(
    model: PreTrainedModel | Loaded,
    cache: RaggedCache,
    question_ids: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
    stop: Stop | None = None,
    pick: Callable[[Tensor], Tensor] | None = None,
    min_new_tokens: int = 0,
    first_token_may_end: bool = True,
) -> Answer:
    """Append each row's question and decode until every row has ended (or max_new_tokens). The caller rolls back.

    pick: logits [rows still running, vocabulary] -> next tokens; greedy by default. min_new_tokens: the first so many
    tokens are the likeliest ones that do not end the answer, neither by eos_ids nor by stop. first_token_may_end:
    False never compares the first token with eos_ids, as kvpress's pipeline does: the answer goes on behind it.
    """
    ends = set(eos_ids)
    begin = time.perf_counter()
    cache.reserve(max(map(len, question_ids)) + max_new_tokens)
    logits = append(model, cache, question_ids)
    free = stop is None and pick is None and min_new_tokens == 0
    look = LOOK.get(logits.device.type, 1) if free else 1
    pick = pick or (lambda logits: logits.argmax(-1))
    tokens: list[list[int]] = [[] for _ in logits]
    running = [True] * len(tokens)
    rows = list(range(len(tokens)))  # those that are decoded: a row that has ended runs along until it leaves
    unseen: list[Tensor] = []
    first = begin
    steps = 0
    while max_new_tokens > 0:
        early = steps < min_new_tokens
        chosen = likeliest_to_go_on(logits, [tokens[r] for r in rows], ends, stop) if early else pick(logits)
        unseen.append(chosen)
        steps += 1
        if steps == 1 or len(unseen) == look or steps == max_new_tokens:
            for column in torch.stack(unseen).tolist():
                for row, token in zip(rows, column, strict=True):
                    if running[row] and token in ends and (tokens[row] or first_token_may_end):
                        running[row] = False
                    elif running[row]:
                        tokens[row].append(token)
                        running[row] = not (stop is not None and stop(tokens[row]))
            unseen = []
        if steps == 1:
            first = time.perf_counter()
        if steps == max_new_tokens or not any(running):
            break
        staying = [i for i, row in enumerate(rows) if running[row]]
        if not unseen and len(staying) <= STAYING * len(rows):  # leaving costs the others a copy
            rows, chosen, cache = [rows[i] for i in staying], chosen[staying], cache.rows(staying)
        logits = append(model, cache, chosen[:, None])
    last = time.perf_counter()
    return Answer(tokens, first - begin, (last - first) / max(1, steps - 1) if steps > 1 else 0.0, steps)


def likeliest_to_go_on(logits: Tensor, tokens: list[list[int]], ends: set[int], stop: Stop | None) -> Tensor:
    """[B]: each row's likeliest token that does not end its answer so far (`tokens`)."""
    ordered = logits.argsort(-1, descending=True).tolist()
    return torch.tensor(
        [
            next(t for t in row if t not in ends and not (stop is not None and stop([*so_far, t])))
            for row, so_far in zip(ordered, tokens, strict=True)
        ],
        device=logits.device,
    )


def left_padded(
    ids: Tensor | Sequence[Sequence[int]], mask: Tensor | None, device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """Rows of token ids -> ids [B, T] with padding on the left, mask [B, T] int64 (1: token; None without padding)."""
    if isinstance(ids, Tensor) and (mask is None or bool(mask.all())):
        return ids.to(device), None
    if isinstance(ids, Tensor):
        rows = [row[used.bool()] for row, used in zip(ids.cpu(), mask.cpu(), strict=True)]  # type: ignore[union-attr]
    else:
        rows = [torch.tensor(row, dtype=torch.int64) for row in ids]
    if not rows or min(map(len, rows)) == 0:
        raise ValueError("every row needs at least one token")
    ids, mask = padded(rows)
    return ids.to(device), None if mask is None else mask.to(device)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """1-D token ids of any length, 0 too -> ids [B, T] with padding on the left, mask [B, T] as in `left_padded`."""
    longest = max(map(len, rows))
    ids, used = (rows[0].new_zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        used[i, longest - len(row) :] = 1
    return ids, None if all(len(row) == longest for row in rows) else used
