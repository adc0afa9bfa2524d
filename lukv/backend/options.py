"""What all layers of one RaggedCache share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from lukv.allocation import Budget
from lukv.eviction import Eviction
from lukv.scoring import Scorer

ATTENTION = "lukv_ragged"  # our name in transformers' registries of attention and mask functions

Span = tuple[int, int]


@dataclass
class Plan:
    """What all layers of one cache share. The first `prompt_columns` columns of input (None: the first forward's) are
    the prompt, evicted by `eviction`; `later` evicts a row again, after every `every` further tokens of it or when
    asked, down to the tokens a head that `sizes` says (None: by its own budget). `stream`: there is no prompt, every
    token is appended and only `later` evicts."""

    config: PreTrainedConfig
    layers: int
    eviction: Eviction | None = None
    observe: tuple[Scorer, ...] = ()
    attention: str = "auto"
    prompt_columns: int | None = None
    record_queries: bool = False
    later: Eviction | None = None
    sizes: tuple[int, ...] | None = None
    every: int | None = None
    stream: bool = False
    rope_switch: int | None = None
    _mask: Tensor | None = field(default=None, repr=False)
    _spans: list[Span] | None = field(default=None, repr=False)

    def later_of(self, row: int) -> Eviction:
        """What evicts batch row `row` again."""
        assert self.later is not None
        return self.later if self.sizes is None else replace(self.later, budget=Budget(tokens=self.sizes[row]))

    def spans(self, valid: Tensor | None) -> list[Span] | None:
        """[B, n] bool -> first and last + 1 valid column of each row; None: all are valid. Every layer of a forward is
        given the same mask, so one look at it serves all."""
        if valid is not self._mask:
            self._mask, self._spans = valid, None if valid is None else [span(row) for row in valid.cpu().numpy()]
        return self._spans


def span(valid: np.ndarray) -> Span:
    used = np.flatnonzero(valid)
    if len(used) == 0:
        return 0, 0
    if len(used) != used[-1] + 1 - used[0]:
        raise ValueError(
            "a row of the attention mask has a hole: padding must be on the left or on the right of each piece"
        )
    return int(used[0]), int(used[-1]) + 1
