"""How a RaggedCache was asked to work: the same for all its layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from lukv.allocation import Budget
from lukv.backend.lengths import Lengths
from lukv.backend.padding import MaskReader
from lukv.scoring import Scorer
from lukv.selection import Eviction

ATTENTION = "lukv_ragged"  # our name in transformers' registries of attention and mask functions
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls a cache, as an argument of a model and in its output. `cache` is its name from 5.24 on."""


@dataclass(frozen=True)
class Later:
    """How a cache is evicted after its prompt: by `eviction`, when asked or after every `every` further tokens a row.

    sizes: tokens that each head of a batch row keeps on average; None: the eviction's own budget. stream: there is no
    prompt, every token is appended and only this evicts.
    """

    eviction: Eviction
    sizes: tuple[int, ...] | None = None
    every: int | None = None
    stream: bool = False

    def of_row(self, row: int) -> Later:
        """The same for batch row `row` alone, with its size in the eviction."""
        if self.sizes is None:
            return self
        return replace(self, eviction=replace(self.eviction, budget=Budget(tokens=self.sizes[row])), sizes=None)


@dataclass(frozen=True)
class Options:
    """layers: how many layers can be evicted. eviction: what evicts the prompt (None: nothing does). observe: further
    scorers that the prompt's queries are shown to. observe_heads: scorers that see them KV head by KV head, for forks
    that are evicted while they answer (RaggedCache.fork). attention: name of the decode kernel. prompt_columns: columns
    of the whole prompt (None: those of the first forward). record_queries: keep the queries after the prompt. lengths:
    what lengths of a row the model's cached keys are right for. cache_dtype: what entries are stored in. questions: how
    many of each batch row's last tokens are the question."""

    config: PreTrainedConfig
    layers: int
    eviction: Eviction | None = None
    observe: tuple[Scorer, ...] = ()
    observe_heads: tuple[Scorer, ...] = ()
    attention: str = "auto"
    prompt_columns: int | None = None
    record_queries: bool = False
    later: Later | None = None
    lengths: Lengths | None = None
    cache_dtype: str = "auto"
    questions: tuple[int, ...] | None = None
    masks: MaskReader = field(default_factory=MaskReader, repr=False, compare=False)

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """Every scorer that the prompt's queries are shown to, once each."""
        own = () if self.eviction is None else (self.eviction.scorer,)
        return tuple(dict.fromkeys((*self.observe, *own)))
