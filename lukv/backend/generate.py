"""Compress a context once, ask questions about it, roll back: greedy decoding, one sequence or a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.allocation import round_half_up
from lukv.backend.architecture import unwrap
from lukv.backend.cache import RaggedCache, choose_cache_dtype
from lukv.backend.forward import Loaded, feed
from lukv.backend.padding import pad_left, stack_left
from lukv.backend.passes import check_shown, run_passes
from lukv.backend.reeviction import LaterEviction
from lukv.backend.rope_check import check_rotation
from lukv.scoring import Prompt, Scorer
from lukv.selection import Eviction

SHRINK_AT = 0.75
"""Rows that have ended leave the batch once at most this share of it is still running."""

SYNC_EVERY = {"cuda": 8}
"""Decode steps between device synchronisations, by device type; 1 for others. Only then the host learns which tokens
were chosen. Where a step depends on them (stop, pick, min_new_tokens), every step synchronises."""

Stop = Callable[[list[int]], bool]
"""The answer so far (token ids of one row) -> is it finished? For stop strings: LoadedModel.stop_at(strings)."""


@dataclass(frozen=True)
class Answer:
    """tokens: what each row answered, without its end-of-text token. ttft_s: seconds from the question to the first
    token, the question's prefill included. tpot_s: mean seconds of each further token, 0 if there is none. steps:
    decode steps run, also those after the last row's end. evictions: of each row, those that its tokens saw, where the
    cache is evicted while it answers."""

    tokens: list[list[int]]
    ttft_s: float
    tpot_s: float
    steps: int
    evictions: list[list[LaterEviction]] = field(default_factory=list)


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
    observe_heads: Sequence[Scorer] = (),
    record_queries: bool = False,
    later: Eviction | None = None,
    every: int | None = None,
    prompts: Sequence[Prompt] | None = None,
    questions: Sequence[int] | None = None,
) -> RaggedCache:
    """Prefill the contexts once and evict layer by layer. At most one layer's full keys and values are alive at a time.

    An eviction that waits for the whole prompt (`Eviction.waits`) is applied at the end: its scorer's extra passes are
    run first, and until then the cache is the full one. prompts: what these passes are made of, one a row; None: as the
    loaded model's tokenizer and chat template say.

    input_ids: token ids of each row, as lists of any length or as a tensor [B, T] with attention_mask [B, T] (1:
    token). questions: how many of each row's last tokens are the question, for scorers that look from it
    (Scorer.needs_question). eviction: None keeps everything. attention: the decode kernel; None: what the model was
    loaded with. The rest is as for RaggedCache.

    chunk: run the prompt through the model in chunks of that many tokens; None: in those that the model was loaded with
    (LoadedModel.prefill_chunk), else all at once. The result is the same and activations take less memory, but all
    layers hold all their keys and values until the last chunk.
    """
    network = unwrap(model)
    scorers = [*observe, *observe_heads, *(e.scorer for e in (eviction, later) if e is not None)]
    check_rotation(network, scorers)
    check_shown(network, scorers)
    ids, mask = pad_left(input_ids, attention_mask, network.device)
    waiting = eviction if eviction is not None and eviction.waits else None
    if waiting and waiting.scorer.makes_passes and prompts is None:
        prompts = describe_prompts(model, ids, mask, waiting.scorer)
    cache = RaggedCache(
        network,
        None if waiting else eviction,
        observe=[*observe, waiting.scorer] if waiting else observe,
        observe_heads=observe_heads,
        attention=attention or str(getattr(model, "attention", "auto")),
        prompt_columns=ids.shape[1],
        record_queries=record_queries,
        later=later,
        every=every,
        cache_dtype="auto" if waiting else choose_cache_dtype(eviction, later),
        questions=questions,
    )
    for columns in split_columns(ids.shape[1], getattr(model, "prefill_chunk", None) if chunk is None else chunk):
        feed(network, cache, ids, mask, columns)
    if waiting is None:
        return cache
    if prompts is not None:
        run_passes(model, cache, [waiting.scorer], prompts)
    return cache.fork_for(waiting)


def describe_prompts(model: PreTrainedModel | Loaded, ids: Tensor, mask: Tensor | None, scorer: Scorer) -> list[Prompt]:
    """What extra passes are made of. Raises ValueError for a model that comes without its tokenizer."""
    if isinstance(model, PreTrainedModel):
        raise ValueError(
            f"scorer {scorer.name} asks for extra passes with a text of its own: give the model as lukv.model.load "
            "returns it, or prompts=[Prompt(...)]"
        )
    rows = ids if mask is None else [row[used.bool()] for row, used in zip(ids, mask, strict=True)]
    return [model.describe_prompt(row.tolist()) for row in rows]


@torch.no_grad()
def stream(
    model: PreTrainedModel | Loaded,
    input_ids: Tensor | Sequence[Sequence[int]],
    eviction: Eviction,
    block: int = 128,
    attention: str | None = None,
) -> RaggedCache:
    """Evict while the prompt streams in, block by block, as KeyDiff's paper does. The cache never holds more than the
    budget and one block.

    The result differs from that of `compress`: later tokens attend to a prompt that is evicted already, and a token is
    scored by what came up to then. From the first block on, the budget is that of the row's whole prompt. Rows may have
    any length, and each gets what it would get alone.
    """
    network = unwrap(model)
    check_rotation(network, [eviction.scorer])
    ids, mask = pad_left(input_ids, None, network.device)
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
    for columns in split_columns(ids.shape[1], block):
        feed(network, cache, *stack_left([row[columns] for row in rows]), slice(None))
    cache.evict_again()
    cache.stop_evicting()  # the answer stays
    return cache


def split_columns(columns: int, size: int | None) -> list[slice]:
    """Slices of at most `size` columns (None: one slice of all)."""
    size = columns if size is None else size
    if size < 1:
        raise ValueError(f"chunk={size} must be at least 1")
    return [slice(a, min(a + size, columns)) for a in range(0, columns, size)]


@torch.no_grad()
def append(model: PreTrainedModel | Loaded, cache: RaggedCache, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Append token ids (one list a row, of any length >= 1) -> logits [B, vocabulary] after each row's last token."""
    network = unwrap(model)
    padded, mask = pad_left(ids, None, network.device)
    return feed(network, cache, padded, mask, slice(None))


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
    """Append each row's question and decode until every row has ended, or max_new_tokens. The caller rolls back; there
    is no way back where the cache was evicted meanwhile, so that is to be a copy (RaggedCache.select_rows).

    pick: logits [rows still decoded, vocabulary] -> next tokens; greedy by default. min_new_tokens: each of the first
    so many tokens is the likeliest one that does not end the answer, neither by eos_ids nor by stop.
    first_token_may_end: False never compares the first token with eos_ids, as kvpress's pipeline does; the answer goes
    on after it.
    """
    begin = first = time.perf_counter()
    cache.reserve(max(map(len, question_ids)) + (0 if cache.evicts_by_itself else max_new_tokens))
    asked_at = [int(seen) + len(question) for seen, question in zip(cache.tokens, question_ids, strict=True)]
    evictions: dict[int, list[LaterEviction]] = {}
    logits = append(model, cache, question_ids)
    depends = stop is not None or pick is not None or min_new_tokens > 0
    sync_every = 1 if depends else SYNC_EVERY.get(logits.device.type, 1)
    pick = pick or (lambda logits: logits.argmax(-1))
    replies = Replies(len(logits), set(eos_ids), stop, first_token_may_end)
    rows = list(range(len(logits)))  # those that are decoded: a row that has ended runs along until it leaves
    unread: list[Tensor] = []  # tokens [rows] of the steps since the last synchronisation
    steps = 0
    while steps < max_new_tokens:
        chosen = replies.pick_unfinished(logits, rows) if steps < min_new_tokens else pick(logits)
        unread.append(chosen)
        steps += 1
        if steps in (1, max_new_tokens) or len(unread) == sync_every:
            replies.add(rows, torch.stack(unread).tolist())
            unread = []
        if steps == 1:
            first = time.perf_counter()
        if steps == max_new_tokens or not any(replies.running):
            break
        staying = [i for i, row in enumerate(rows) if replies.running[row]]
        if not unread and len(staying) <= SHRINK_AT * len(rows):  # not at once: it copies what the others hold
            evictions |= {row: cache.list_evictions(i) for i, row in enumerate(rows)}
            rows, chosen, cache = [rows[i] for i in staying], chosen[staying], cache.select_rows(staying)
        logits = append(model, cache, chosen[:, None])
    last = time.perf_counter()
    evictions |= {row: cache.list_evictions(i) for i, row in enumerate(rows)}
    seen_by = [[e for e in evictions[row] if e.tokens < asked_at[row] + len(t)] for row, t in enumerate(replies.tokens)]
    return Answer(replies.tokens, first - begin, (last - first) / (steps - 1) if steps > 1 else 0.0, steps, seen_by)


@torch.no_grad()
def decode(
    model: PreTrainedModel | Loaded,
    cache: RaggedCache,
    question_ids: Sequence[int],
    max_new_tokens: int,
    eos_ids: Sequence[int] = (),
) -> Iterator[int]:
    """The tokens of `answer` to one question, each as soon as it is there. The caller rolls back."""
    cache.reserve(len(question_ids) + max_new_tokens)
    new = list(question_ids)
    for _ in range(max_new_tokens):
        token = int(append(model, cache, [new]).argmax(-1))
        if token in eos_ids:
            return
        yield token
        new = [token]


class Replies:
    """tokens: what each row has answered so far, without its end. running: has the row not ended yet?"""

    def __init__(self, rows: int, ends: set[int], stop: Stop | None, first_token_may_end: bool) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.running = [True] * rows
        self._ends, self._stop, self._first_token_may_end = ends, stop, first_token_may_end

    def add(self, rows: Sequence[int], steps: Sequence[Sequence[int]]) -> None:
        """steps: of each step the token chosen for each of `rows`. What follows a row's end is ignored."""
        for chosen in steps:
            for row, token in zip(rows, chosen, strict=True):
                may_end = self._first_token_may_end or self.tokens[row]
                if self.running[row] and token in self._ends and may_end:
                    self.running[row] = False
                elif self.running[row]:
                    self.tokens[row].append(token)
                    self.running[row] = not self._stops(self.tokens[row])

    def pick_unfinished(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """logits [rows, vocabulary] -> each row's likeliest token that does not end its answer: [rows] int64."""
        ordered = logits.argsort(-1, descending=True).tolist()
        chosen = [
            next(t for t in best_first if t not in self._ends and not self._stops([*self.tokens[row], t]))
            for row, best_first in zip(rows, ordered, strict=True)
        ]
        return torch.tensor(chosen, device=logits.device)

    def _stops(self, tokens: list[int]) -> bool:
        return self._stop is not None and self._stop(tokens)
