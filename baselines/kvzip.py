"""KVzip (Kim et al. 2025, arXiv 2505.23416): keep what the model looks at when it repeats the context.

The context is cut into chunks. For each chunk the model is asked, behind the whole cache, to repeat it, and reads its
tokens as the answer. With c the chunk's keys, s the first tokens and r the keys of the pass itself:

    s_k = max over the rows and the G query heads of group k of softmax(q . [s, c, r] * scale), cut to c

KVzip+ (Jegou and Jeblick 2026, arXiv 2601.07891) takes instead of a probability what it does to the residual stream:

    a * |W_O^h v| / |h|       v: the value of the key, h: the attention's input of the row

Two forms go by the name KVzip:

| config         | chunk | s, which is always kept         | who                             |
|----------------|-------|---------------------------------|---------------------------------|
| kvzip          | 2048  | the first 4 tokens              | kvpress                         |
| kvzip_original | 2000  | all that precedes the user text | the authors' repository         |

Both repeat only the user's text. Without a chat template that is the whole prompt. What precedes it and is not always
kept has score 0. In both, all heads of all layers compete: allocator=global_topk.

Differences from both codes: scores are float32, and Gemma-2's soft cap is applied. The repository keeps s beside the
budget, here it counts. KVzip+ is kvpress's form, in which h is what attention gets, after the layer's norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lukv.ops import attention_mass
from lukv.scoring import ExtraPass, PassLayer, Prompt, PromptLayer, Scorer

FIRST = "\n\nRepeat the previous context exactly."
NEXT = "\n\nRepeat the part of the previous context exactly, starting with"
OVERLAP = 8  # tokens of the chunk before that say where to start
KEPT = 1e3  # above any probability
ROWS = 64  # of a pass at a time: their logits then fit into a CPU core's cache


@dataclass(frozen=True)
class Repetition(ExtraPass):
    """Asks to repeat the prompt's tokens start .. end-1. The first `sinks` tokens are seen beside them."""

    start: int
    end: int
    sinks: int


@dataclass(frozen=True)
class KVzip(Scorer):
    """`chunk`: tokens that are repeated in one pass. `keep_head`: the tokens before the user's text take the place of
    the `sink` first ones."""

    name: str = "kvzip"
    sink: int = 4
    chunk: int = 2048
    keep_head: bool = False

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"{self.name}: chunk={self.chunk} must be at least 1")

    def extra_passes(self, prompt: Prompt) -> list[ExtraPass]:
        passes: list[ExtraPass] = []
        for start in range(prompt.head, len(prompt.ids), self.chunk):
            end = min(start + self.chunk, len(prompt.ids))
            if start == prompt.head:
                request = tuple(prompt.encode(FIRST))
            else:  # the repository has a blank behind it
                words = tuple(prompt.encode(NEXT + " " * self.keep_head))
                request = words + prompt.ids[max(start - OVERLAP, prompt.head) : start]
            ids = request + prompt.tail + prompt.ids[start:end]
            passes.append(Repetition(ids, start, end, prompt.head if self.keep_head else min(self.sink, start)))
        return passes

    def observe_pass(self, observed: Tensor | None, layer: PassLayer) -> Tensor:
        """The scores [K, T] of all chunks so far."""
        asked, tokens = layer.asked, layer.tokens
        assert isinstance(asked, Repetition)
        chunk = slice(asked.start, asked.end)
        keys = torch.cat([layer.keys[:, : asked.sinks], layer.keys[:, chunk], layer.keys[:, tokens:]], 1)
        before = asked.sinks + asked.end - asked.start  # the pass comes right behind them, as far as causality goes
        weights = self.weigh_rows(layer)
        attention = keys.new_zeros(len(layer.queries), before, dtype=torch.float32)
        for a in range(0, layer.queries.shape[1], ROWS):
            rows = slice(a, min(a + ROWS, layer.queries.shape[1]))
            seen = layer.queries[:, rows], keys[:, : before + rows.stop], layer.scale, before + a, layer.softcap
            part = None if weights is None else weights[rows]
            found = attention_mass(*seen, reduce="max", columns=before, row_weights=part)
            attention = attention.maximum(found)
        worth = self.weigh_keys(attention[:, asked.sinks :], layer, chunk).float()
        scores = worth.new_zeros(len(keys), tokens) if observed is None else observed.clone()
        if self.keep_head:
            scores[:, : asked.sinks] = KEPT
        scores[:, chunk] = worth.unflatten(0, (len(keys), -1)).amax(1)
        return scores

    def weigh_rows(self, layer: PassLayer) -> Tensor | None:
        """[n]: what the probabilities of each row of the pass are multiplied by; None: nothing."""
        return None

    def weigh_keys(self, attention: Tensor, layer: PassLayer, chunk: slice) -> Tensor:
        """attention [H, m] of the chunk's keys, weighed by what their values are worth."""
        return attention

    def score(self, layer: PromptLayer) -> Tensor:
        if layer.observed is None:  # nothing but a template: there is no pass
            return torch.zeros(layer.keys.shape[:2], device=layer.keys.device)
        scores: Tensor = layer.observed
        return scores


@dataclass(frozen=True)
class KVzipPlus(KVzip):
    """KVzip by contributions to the residual stream."""

    needs_output: ClassVar[bool] = True
    needs_hidden: ClassVar[bool] = True
    name: str = "kvzip_plus"

    def weigh_rows(self, layer: PassLayer) -> Tensor:
        assert layer.hidden is not None
        return 1 / layer.hidden.float().norm(dim=-1)

    def weigh_keys(self, attention: Tensor, layer: PassLayer, chunk: slice) -> Tensor:
        assert layer.weigh is not None
        return attention * layer.weigh(layer.values[:, chunk])
