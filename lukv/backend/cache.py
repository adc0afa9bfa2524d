"""RaggedCache: a KV cache in which every KV head of every layer holds a number of tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lukv.backend.config import rope_switch, windows
from lukv.backend.layer import RaggedLayer
from lukv.backend.plan import Plan
from lukv.backend.rope import rope_of
from lukv.backend.selection import Eviction
from lukv.scoring import Scorer


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
        return sum(int(layer.arena.lengths.sum()) * layer.arena.entry_bytes for layer in self.layers if layer.arena)

    @property
    def full_nbytes(self) -> int:
        """Bytes that a full cache has at the same length, padding not counted."""
        return sum(
            int(np.minimum(layer.tokens, layer.window - 1 if layer.window else layer.tokens).sum())
            * layer.arena.heads
            * layer.arena.entry_bytes
            for layer in self.layers
            if layer.arena
        )

    @property
    def allocated_nbytes(self) -> int:
        """Bytes allocated, room for tokens to come included."""
        return sum(layer.arena.nbytes for layer in self.layers if layer.arena)

    def evicted(self, eviction: Eviction) -> RaggedCache:
        """A new cache with what `eviction` keeps of this one, which must keep everything (eviction=None) and have shown
        the prompt's queries to the scorer (observe=[scorer]): one prefill serves any number of methods and budgets. The
        result is the same as that of a prefill with this eviction. What was appended to this cache is left out."""
        if self.plan.eviction is not None:
            raise ValueError("this cache was evicted already: prefill with eviction=None to evict it many times")
        if type(eviction.scorer).observe is not Scorer.observe and eviction.scorer not in self.plan.observe:
            raise ValueError(
                f"{eviction.scorer.name} needs the prompt's queries: prefill with observe=[{eviction.scorer.name}]"
            )
        twin = copy(self)
        twin.plan = replace(self.plan, eviction=eviction)
        twin.layers = [layer.evicted(twin.plan) for layer in self.layers]
        return twin

    def reserve(self, tokens: int) -> None:
        """Make room for that many tokens at once, so that no step of a loop has to move memory."""
        for layer in self.layers:
            if layer.arena is not None:
                layer.arena.reserve(tokens)

    def save(self, path: str | Path) -> None:
        """Write what is stored now to a safetensors file."""
        from lukv.backend import storage  # here: storage builds caches

        storage.save(self, path)

    @staticmethod
    def load(path: str | Path, model: PreTrainedModel, attention: str = "auto") -> RaggedCache:
        """What `save` wrote, for the same model. Raises FileNotFoundError; ValueError for a broken or foreign file."""
        from lukv.backend import storage

        return storage.load(path, model, attention)

    def commit(self) -> None:
        """Make the present state the one that `rollback` goes back to."""
        for layer in self.layers:
            layer.commit()

    def rollback(self) -> None:
        """Back to the state right after the prompt (or the last commit). Free: only lengths are reset."""
        for layer in self.layers:
            layer.rollback()

    def evict_again(self) -> None:
        """Apply `later` to everything stored (a second turn, say) and commit."""
        if self.plan.later is None:
            raise RuntimeError("nothing to evict by: make the cache with later=Eviction(...)")
        for layer in self.evictable:
            layer.evict_again()
        self.commit()
