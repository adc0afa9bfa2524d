"""RaggedCache: a KV cache in which every KV head of every layer holds a number of tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lukv.backend.architecture import check_wrapper
from lukv.backend.config import count_readers, find_windows, hash_weights
from lukv.backend.layer import RaggedLayer
from lukv.backend.lengths import find_lengths
from lukv.backend.options import Later, Options
from lukv.backend.quantized import AnyArena, Part, build_arena, list_parts
from lukv.backend.reeviction import LaterEviction
from lukv.backend.rope import rope_of
from lukv.backend.stored import Stored
from lukv.scoring import Scorer
from lukv.selection import Eviction

Selection = list[list[Tensor]]
"""[layer][batch row] -> [K, T] bool: which entries of the prompt stay."""


@dataclass(frozen=True)
class LayerState:
    """parts: what its arena is made of; positions [entries] int32: where each entry stood in its row."""

    parts: list[Part]
    positions: Tensor


@dataclass(frozen=True)
class CacheState:
    """All that a cache holds: columns of input seen, tokens seen of each row [B] int64, and every layer's entries."""

    seen: int
    tokens: np.ndarray
    layers: list[LayerState]
    cache_dtype: str = "auto"


class RaggedCache(Cache):
    """Give it to any supported model as `past_key_values`, or `cache` from transformers 5.24 on (after
    `use_ragged_attention(model)`, which `load` does).

    The first forward is the prompt, or its first chunk if `prompt_columns` says that the prompt has more columns. After
    each layer's prompt attention `eviction` decides what stays (None: everything). Later tokens are appended. They are
    evicted only if `later` is given.

    observe: scorers to show the prompt's queries to, for a later `fork_for`. observe_heads: for `fork(later=)`, see
    options.Options. attention: the decode kernel, or "auto" (see kernels). record_queries: keep the post-RoPE queries
    after the prompt. later: what evicts after the prompt; sizes, every and stream belong to it, see options.Later.
    cache_dtype: what the entries are stored in; None: what the evictions say. questions: how many of each row's last
    tokens are the question, for scorers that look from it.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(
        self,
        model: PreTrainedModel,
        eviction: Eviction | None = None,
        *,
        observe: Sequence[Scorer] = (),
        observe_heads: Sequence[Scorer] = (),
        attention: str = "auto",
        prompt_columns: int | None = None,
        record_queries: bool = False,
        later: Eviction | None = None,
        sizes: Sequence[int] | None = None,
        every: int | None = None,
        stream: bool = False,
        cache_dtype: str | None = None,
        questions: Sequence[int] | None = None,
    ) -> None:
        check_wrapper(model)
        check_waits(eviction, later)
        if (every is not None or stream) and later is None:
            raise ValueError("every= and stream= need an eviction to apply: give later=Eviction(...)")
        if prompt_columns is None and not stream and getattr(model.generation_config, "prefill_chunk_size", None):
            raise ValueError(
                "the model's generation config cuts prompts into chunks (prefill_chunk_size), and the cache would "
                "evict after the first: give prompt_columns=(columns of the whole prompt), or use compress(chunk=...)"
            )
        check_readers(model, evicts=every is not None or stream)
        windows = find_windows(model.config)
        config = model.config.get_text_config(decoder=True)
        self.options = Options(
            config,
            layers=windows.count(None),
            eviction=eviction,
            observe=tuple(observe),
            observe_heads=tuple(observe_heads),
            attention=attention,
            prompt_columns=prompt_columns,
            record_queries=record_queries,
            later=None if later is None else Later(later, None if sizes is None else tuple(sizes), every, stream),
            lengths=find_lengths(config),
            cache_dtype=cache_dtype or choose_cache_dtype(eviction, later),
            questions=None if questions is None else tuple(questions),
        )
        self.hash_weights = lambda: hash_weights(model)  # not the model itself, which a deepcopy would copy
        self.model_layers = [i for i, window in enumerate(windows) if window is None]
        layers = [
            RaggedLayer(self.options, windows[:i].count(None), window, rope_of(model, i), guards=i == 0)
            for i, window in enumerate(windows)
        ]
        super().__init__(layers=layers)  # type: ignore[arg-type]

    # ---- what it holds -----------------------------------------------------------------------------------------------

    @property
    def evictable(self) -> list[RaggedLayer]:
        """The layers with full attention, in order; `model_layers` are their indices in the model."""
        return [self.layers[i] for i in self.model_layers]

    @property
    def tokens(self) -> np.ndarray:
        """[B] int64: tokens seen, without padding; the position of the next token."""
        return self.layers[0].tokens

    @property
    def kernel(self) -> str | None:
        """The decode kernel in use, once a token was run through the cache."""
        kernel = self.evictable[0].kernel
        return None if kernel is None else kernel.name

    @property
    def kept_counts(self) -> np.ndarray:
        """[layers, B, K] int64: entries of the prompt (up to the last commit) that stay, in the evictable layers.
        Raises RuntimeError before the whole prompt has come."""
        snapshots = [layer.held.committed for layer in self.evictable]
        return np.stack([snapshot.lengths.reshape(len(snapshot.tokens), -1) for snapshot in snapshots])

    @property
    def evicts_by_itself(self) -> bool:
        """Is a row of it evicted after every so many tokens?"""
        return any(layer.reeviction is not None and layer.reeviction.is_running for layer in self.evictable)

    def list_evictions(self, row: int) -> list[LaterEviction]:
        """The evictions of one row since its prompt, in order, with the entries kept [layers, K] of each."""
        layers = [layer.reeviction.history[row] for layer in self.evictable if layer.reeviction is not None]
        return [LaterEviction(of[0].tokens, np.stack([each.kept for each in of])) for of in zip(*layers, strict=True)]

    def view_entries(self, layer: int, row: int) -> tuple[Tensor, Tensor]:
        """Views of keys [K, T, d] and values [K, T, dv] of one row in evictable layer `layer`. Raises ValueError unless
        its heads are equally long, as those of a cache that keeps everything are."""
        return self.evictable[layer].held.arena.view_row(row)

    def find_positions(self, layer: int, row: int) -> list[Tensor]:
        """For each KV head of one row in evictable layer `layer`: where its entries stood, [entries] int64."""
        held = self.evictable[layer].held
        return [held.find_positions(sequence) for sequence in held.arena.list_sequences([row])]

    def read_queries(self, layer: int) -> Tensor:
        """[B, H, n, d]: post-RoPE queries of the columns after the prompt, in evictable layer `layer`. Raises
        RuntimeError if none was recorded."""
        queries = self.evictable[layer].queries
        if not queries:
            raise RuntimeError("no query was recorded: make the cache with record_queries=True and append tokens")
        return torch.cat(queries, dim=2)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries stored now, sliding-window layers included."""
        return int(self.row_nbytes.sum())

    @property
    def full_nbytes(self) -> int:
        """Bytes that a full cache in the model's dtype has at the same length, padding not counted."""
        return int(self.full_row_nbytes.sum())

    @property
    def row_nbytes(self) -> np.ndarray:
        """[B] int64: `nbytes` of each batch row."""
        return np.array([arena.row_nbytes for arena in self._arenas], dtype=np.int64).sum(0)

    @property
    def full_row_nbytes(self) -> np.ndarray:
        """[B] int64: `full_nbytes` of each batch row."""
        each = [
            np.minimum(layer.tokens, layer.window - 1 if layer.window else layer.tokens)
            * layer.stored.arena.heads
            * layer.stored.arena.entry_bytes
            for layer in self.layers
            if layer.stored
        ]
        return np.array(each, dtype=np.int64).sum(0)

    @property
    def allocated_nbytes(self) -> int:
        """Bytes allocated, room for tokens to come included."""
        return sum(arena.nbytes for arena in self._arenas)

    @property
    def _arenas(self) -> list[AnyArena]:
        return [layer.stored.arena for layer in self.layers if layer.stored]

    def require_attended(self) -> None:
        """Raise NotImplementedError, after a forward, for a model that attends over other keys than those it gave to
        this cache. Without this only the next forward would notice."""
        for layer in self.layers:
            layer.require_attended()

    # ---- other caches made of it -------------------------------------------------------------------------------------

    def select(self, eviction: Eviction | None) -> Selection:
        """What `eviction` (None: everything) keeps of the prompt, which must be here whole (see `fork_for`). Scores are
        computed once for all evictions that share a scorer and its protection."""
        self._require_whole()
        if eviction is None:
            return [layer.keep_window() for layer in self.layers]
        scorer = eviction.scorer
        if type(scorer).observe is not Scorer.observe and scorer not in self.options.observe:
            raise ValueError(f"{scorer.name} needs the prompt's queries: prefill with observe=[{scorer.name}]")
        if scorer.makes_passes and not self.evictable[0].knows_passes(scorer):
            raise ValueError(f"{scorer.name} asks for extra passes: run_passes(model, cache, [{scorer.name}], prompts)")
        rows = zip(*(layer.rank(eviction) for layer in self.evictable), strict=True)
        kept = [eviction.select(row) for row in rows]
        return [
            layer.keep_window() if layer.is_sliding else [row[layer.index] for row in kept] for layer in self.layers
        ]

    def begin_passes(self, scorers: Sequence[Scorer], lengths: Sequence[int]) -> None:
        """Let the extra passes of these scorers begin (`passes.run_passes`). lengths: tokens of each row's prompt."""
        self._require_whole()
        if missing := [scorer.name for scorer in scorers if scorer not in self.options.observe]:
            raise ValueError(f"{missing[0]} asks for extra passes: prefill with observe=[{missing[0]}]")
        if self.tokens.tolist() != list(lengths):
            raise ValueError(f"the prompts have {list(lengths)} tokens, this cache has seen {self.tokens.tolist()}")
        for layer in self.evictable:
            layer.begin_passes(scorers)

    def _require_whole(self) -> None:
        if (self.kept_counts != self.evictable[0].held.committed.tokens[:, None]).any():
            raise ValueError("this cache was evicted already: prefill with eviction=None to evict it many times")

    def fork(
        self,
        selections: Sequence[Selection],
        eviction: Eviction | None = None,
        later: Sequence[Later | None] | None = None,
        cache_dtype: str | None = None,
    ) -> RaggedCache:
        """A new cache with this one's rows as the first selection keeps them, then all of them again as the second
        keeps them, and so on: many evictions are decoded in one batch. What was appended here is left out.

        eviction: what made the selection, if one eviction made all of it; only a saved file says so. later: of each
        selection, what evicts its rows after the prompt (None: nothing), by scorers of observe_heads= in the prefill.
        cache_dtype: what the new cache stores its entries in; None: as this one does.
        """
        if later is not None and any(later) and not self.options.observe_heads:
            raise ValueError("later= evicts by what a scorer saw of the prompt: prefill with observe_heads=[scorer]")
        twin = copy(self)
        twin.options = replace(self.options, eviction=eviction, cache_dtype=cache_dtype or self.options.cache_dtype)
        each = zip(self.layers, zip(*selections, strict=True), strict=True)
        twin.layers = [layer.fork(masks, twin.options, later) for layer, masks in each]
        return twin

    def fork_for(self, eviction: Eviction) -> RaggedCache:
        """A new cache with what `eviction` keeps of this one's prompt, the same as after a prefill with this eviction.

        So one prefill serves any number of methods and budgets. This cache must keep everything (eviction=None), and
        must have shown the prompt's queries to a scorer that needs them (observe=[scorer]).
        """
        return self.fork([self.select(eviction)], eviction, cache_dtype=eviction.cache_dtype)

    def select_rows(self, rows: Sequence[int]) -> RaggedCache:
        """A new cache that holds copies of these batch rows as they are now, in this order."""
        twin = copy(self)
        twin.layers = [layer.select_rows(rows) for layer in self.layers]
        return twin

    def state(self) -> CacheState:
        """What is stored now, without free rows. Raises RuntimeError before the whole prompt has come."""
        layers = []
        for layer in self.layers:
            held = layer.held
            positions = [held.find_positions(sequence).int() for sequence in held.sequences]
            layers.append(LayerState(list_parts(held.arena), torch.cat(positions)))
        return CacheState(self.get_seq_length(), self.tokens, layers, self.options.cache_dtype)

    @classmethod
    def from_state(
        cls, model: PreTrainedModel, state: CacheState, devices: Sequence[torch.device], attention: str = "auto"
    ) -> RaggedCache:
        """A cache for the same model with this state, which is the one that `rollback` goes back to.

        devices: where each layer's entries are to lie.
        """
        cache = cls(model, attention=attention, cache_dtype=state.cache_dtype)
        for layer, own, device in zip(cache.layers, state.layers, devices, strict=True):
            arena = build_arena(own.parts, len(state.tokens), layer.cache_dtype, device)
            layer.restore(Stored.make(arena, own.positions.to(device), state.tokens.copy()), state.seen)
        return cache

    # ---- what changes it ---------------------------------------------------------------------------------------------

    def reserve(self, tokens: int) -> None:
        """Make room for that many tokens at once, so that no step of a loop has to move memory."""
        for arena in self._arenas:
            arena.reserve(tokens)

    def commit(self) -> None:
        """Make the present state the one that `rollback` goes back to."""
        for layer in self.layers:
            layer.commit()

    def rollback(self) -> None:
        """Back to the state right after the prompt (or the last commit). Cheap: nothing is moved."""
        for layer in self.layers:
            layer.rollback()

    def evict_again(self, due: np.ndarray | None = None) -> None:
        """Apply `later` to everything stored (a second turn, say), or to the rows that are due [B] bool, and commit."""
        if self.evictable[0].reeviction is None:
            raise RuntimeError("nothing to evict by: make the cache with later=Eviction(...)")
        for layer in self.evictable:
            layer.evict_again(due)
        self.commit()

    def stop_evicting(self) -> None:
        """From now on `later` is applied only by `evict_again`, and no longer after every so many tokens."""
        for layer in self.evictable:
            if layer.reeviction is not None:
                layer.reeviction.stop()


def check_readers(model: PreTrainedModel, evicts: bool) -> None:
    """Raise ValueError for a model whose layers read an earlier layer's entries where these may not be there any more.
    evicts: the cache is evicted by itself between two tokens."""
    if not count_readers(model.config):
        return
    said = f"some layers of this {model.config.model_type} read the keys and values of an earlier layer, which"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise ValueError(f"{said} must lie on the same device: use one device")
    if evicts:
        raise ValueError(
            f"{said} cannot be evicted between the two: leave out every= and stream= (decoding=none), evict_again() "
            "evicts when asked"
        )


def check_waits(eviction: Eviction | None, later: Eviction | None) -> None:
    """Raise ValueError for evictions that cannot be applied layer by layer, or not to what is evicted already."""
    for each, what in (
        (eviction, "use compress(), or prefill with eviction=None"),
        (later, "choose another for later"),
    ):
        if each is not None and each.waits:
            part = type(each.allocator).__name__ if each.allocator.compares_layers else f"scorer {each.scorer.name}"
            raise ValueError(f"{part} needs the whole prompt, in all layers, before it is evicted: {what}")


def choose_cache_dtype(eviction: Eviction | None, later: Eviction | None) -> str:
    """What a cache stores its entries in: what its evictions say. Raises ValueError where they say two things."""
    said = {each.cache_dtype for each in (eviction, later) if each is not None} or {"auto"}
    if len(said) > 1:
        raise ValueError(f"a cache has one cache_dtype: the eviction and later= say {' and '.join(sorted(said))}")
    return said.pop()
