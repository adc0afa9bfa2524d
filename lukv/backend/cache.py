"""RaggedCache: a KV cache in which every KV head of every layer holds a number of tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lukv.backend.config import rope_switch, weights_hash, windows
from lukv.backend.layer import RaggedLayer
from lukv.backend.options import Plan
from lukv.backend.rope import rope_of
from lukv.eviction import Eviction
from lukv.scoring import Scorer

Selection = list[list[Tensor]]
"""[layer][batch row] -> [K, T] bool: which entries of the prompt stay."""


class RaggedCache(Cache):
    """Give it to any supported model as `past_key_values` (after `use_ragged_attention(model)`, which `load` does).

    The first forward is the prompt (or the first `prompt_columns` columns, if it comes in pieces): after each layer's
    prompt attention `eviction` decides what stays (None: everything). What follows is appended and never evicted,
    except by `later`.

    observe: scorers to show the prompt's queries to, so that `evicted` can be asked for them afterwards.
    attention: the decode kernel, or "auto" (see kernels). record_queries: keep the post-RoPE queries after the prompt.
    later, sizes, every, stream: see Plan.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(
        self,
        model: PreTrainedModel,
        eviction: Eviction | None = None,
        *,
        observe: Sequence[Scorer] = (),
        attention: str = "auto",
        prompt_columns: int | None = None,
        record_queries: bool = False,
        later: Eviction | None = None,
        sizes: Sequence[int] | None = None,
        every: int | None = None,
        stream: bool = False,
    ) -> None:
        if (every is not None or stream) and later is None:
            raise ValueError("every= and stream= need an eviction to apply: give later=Eviction(...)")
        if prompt_columns is None and not stream and getattr(model.generation_config, "prefill_chunk_size", None):
            raise ValueError(
                "the model's generation config cuts prompts into pieces (prefill_chunk_size), and the cache would "
                "evict after the first: give prompt_columns=(columns of the whole prompt), or use compress(chunk=...)"
            )
        kinds = windows(model.config)
        self.plan = Plan(
            model.config.get_text_config(decoder=True),
            layers=kinds.count(None),
            eviction=eviction,
            observe=tuple(observe),
            attention=attention,
            prompt_columns=prompt_columns,
            record_queries=record_queries,
            later=later,
            sizes=None if sizes is None else tuple(sizes),
            every=every,
            stream=stream,
            rope_switch=rope_switch(model.config.get_text_config(decoder=True)),
        )
        self.weights_hash = lambda: weights_hash(model)  # not the model itself, which a deepcopy would copy
        self.model_layers = [i for i, window in enumerate(kinds) if window is None]
        layers = [
            RaggedLayer(self.plan, kinds[:i].count(None), window, rope_of(model, i), guards=i == 0)
            for i, window in enumerate(kinds)
        ]
        super().__init__(layers=layers)  # type: ignore[arg-type]

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
        """The decode kernel in use, once a token was appended."""
        return self.evictable[0].kernel

    def kept(self) -> np.ndarray:
        """[layers, B, K] int64: entries that stay of the prompt (up to the last commit), evictable layers only."""
        marks = [layer.mark for layer in self.evictable]
        if any(mark is None for mark in marks):
            raise RuntimeError("the prompt is not in the cache yet")
        return np.stack([mark.lengths.reshape(len(mark.tokens), -1) for mark in marks if mark is not None])

    def entries(self, layer: int, row: int) -> tuple[Tensor, Tensor]:
        """keys [K, T, d] and values [K, T, dv] (views) of one row in evictable layer `layer`, if its heads are equally
        long, as those of a cache that keeps everything are."""
        arena = self.evictable[layer].arena
        if arena is None:
            raise RuntimeError("the prompt is not in the cache yet")
        return arena.row(row)

    def future_queries(self, layer: int) -> Tensor:
        """[B, H, n, d]: post-RoPE queries of the columns after the prompt, in evictable layer `layer`."""
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
        """Bytes that a full cache has at the same length, padding not counted."""
        return int(self.full_row_nbytes.sum())

    @property
    def row_nbytes(self) -> np.ndarray:
        """[B] int64: `nbytes` of each batch row."""
        stored = [layer.arena for layer in self.layers if layer.arena]
        each = [a.lengths.reshape(a.batch, -1).sum(1) * a.entry_bytes for a in stored]
        return np.array(each, dtype=np.int64).sum(0)

    @property
    def full_row_nbytes(self) -> np.ndarray:
        """[B] int64: `full_nbytes` of each batch row."""
        each = [
            np.minimum(layer.tokens, layer.window - 1 if layer.window else layer.tokens)
            * layer.arena.heads
            * layer.arena.entry_bytes
            for layer in self.layers
            if layer.arena
        ]
        return np.array(each, dtype=np.int64).sum(0)

    @property
    def allocated_nbytes(self) -> int:
        """Bytes allocated, room for tokens to come included."""
        return sum(layer.arena.nbytes for layer in self.layers if layer.arena)

    def evicted(self, eviction: Eviction) -> RaggedCache:
        """A new cache with what `eviction` keeps of this one, which must keep everything (eviction=None) and have shown
        the prompt's queries to the scorer (observe=[scorer]): one prefill serves any number of methods and budgets. The
        result is the same as that of a prefill with this eviction. What was appended to this cache is left out."""
        twin = self.keeping([self.select(eviction)])
        twin.plan.eviction = eviction
        return twin

    def select(self, eviction: Eviction | None, observed: Sequence[Sequence[Any]] | None = None) -> Selection:
        """What `eviction` (None: everything) keeps of the prompt, which must be here whole: see `evicted`. Scores are
        computed once for all evictions that share a scorer and its protection.

        observed: for each batch row and evictable layer, what the scorer finds as PromptLayer.observed, if that is not
        what it made of the prompt's queries (Scorer.needs_utility).
        """
        if (self.kept() != self.evictable[0].prompt_tokens[:, None]).any():
            raise ValueError("this cache was evicted already: prefill with eviction=None to evict it many times")
        scorer = eviction.scorer if eviction else None
        if scorer and type(scorer).observe is not Scorer.observe and scorer not in self.plan.observe:
            raise ValueError(f"{scorer.name} needs the prompt's queries: prefill with observe=[{scorer.name}]")
        if observed is None:
            return [layer.select(eviction) for layer in self.layers]
        if len(observed) != len(self.tokens):
            raise ValueError(f"observed is given for {len(observed)} sequences, this cache holds {len(self.tokens)}")
        return [
            layer.select(eviction, None if layer.is_sliding else [row[layer.index] for row in observed])
            for layer in self.layers
        ]

    def keeping(self, selections: Sequence[Selection]) -> RaggedCache:
        """A new cache: this one's rows with what the first selection keeps of them, then all of them again with what
        the second keeps, ... Each row is a sequence like any other: many evictions are decoded in one batch."""
        twin = copy(self)
        sizes = self.plan.sizes and self.plan.sizes * len(selections)
        twin.plan = replace(self.plan, eviction=None, sizes=sizes)
        each = zip(self.layers, zip(*selections, strict=True), strict=True)
        twin.layers = [layer.keeping(masks, twin.plan) for layer, masks in each]
        return twin

    def rows(self, chosen: Sequence[int]) -> RaggedCache:
        """A new cache that holds copies of these batch rows as they are now, in this order."""
        twin = copy(self)
        twin.plan = replace(self.plan, sizes=self.plan.sizes and tuple(self.plan.sizes[row] for row in chosen))
        twin.layers = [layer.rows(chosen, twin.plan) for layer in self.layers]
        return twin

    def reserve(self, tokens: int) -> None:
        """Make room for that many tokens at once, so that no step of a loop has to move memory."""
        for layer in self.layers:
            if layer.arena is not None:
                layer.arena.reserve(tokens)

    def save(self, path: str | Path) -> None:
        """Write what is stored now to a safetensors file."""
        from lukv.backend import cache_file as storage  # here: storage builds caches

        storage.save(self, path)

    @staticmethod
    def load(path: str | Path, model: PreTrainedModel, attention: str = "auto") -> RaggedCache:
        """What `save` wrote, for the same model. Raises FileNotFoundError; ValueError for a broken or foreign file."""
        from lukv.backend import cache_file as storage

        return storage.load(path, model, attention)

    def commit(self) -> None:
        """Make the present state the one that `rollback` goes back to."""
        for layer in self.layers:
            layer.commit()

    def rollback(self) -> None:
        """Back to the state right after the prompt (or the last commit). Cheap: nothing is moved."""
        for layer in self.layers:
            layer.rollback()

    def evict_again(self) -> None:
        """Apply `later` to everything stored (a second turn, say) and commit."""
        if self.plan.later is None:
            raise RuntimeError("nothing to evict by: make the cache with later=Eviction(...)")
        for layer in self.evictable:
            layer.evict_again()
        self.commit()
