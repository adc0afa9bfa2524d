"""What a scorer is: it says how much each cached token of each KV head matters.

A scorer sees one sequence without padding, right after a layer's prefill attention; the backend cuts a padded batch
into its sequences. It is a pure function of tensors: it has no model, no cache and no state of its own.

    observe(queries of the prompt) ...  ->  observed            chunk by chunk, if the scorer needs queries
    extra_passes(prompt)                ->  texts to run        behind the whole cache, if one look is not enough
    observe_pass(what a pass showed) ... -> observed            pass by pass
    score(layer with observed)          ->  scores [K, T]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [n] -> (cos, sin), each [n, rotary dims] float32, in the half-split layout of `lukv.ops.rotate`."""


@dataclass(frozen=True)
class PromptLayer:
    """One layer of one prompt of T tokens, with K KV heads and H = G*K query heads.

    Query heads k*G .. k*G+G-1 share KV head k. keys [K, T, d] (post-RoPE) and values [K, T, dv] have the model's dtype.
    `index` is the layer's number among the `layers` that can be evicted. `scale` multiplies q.k. `softcap` is the cap
    of Gemma-2's logits, None elsewhere. `observed` is what `Scorer.observe` and `observe_pass` made of the
    queries. `output` is the layer's output projection W_O [hidden, H * dv], in which head h has the columns
    h*dv .. (h+1)*dv-1, for scorers that ask for it (Scorer.needs_output), else None. `question` is how many of the last
    tokens are the question, where whoever compresses knows it (Scorer.needs_question), else None.

    A later eviction (lukv/backend/reeviction.py) shows one KV head at a time: K = 1, and `head` is its number. keys and
    values then hold the T tokens that are left of `seen`, and `positions` [T] int64, ascending, says where these stood
    in the text. For a whole prompt `head`, `seen` and `positions` are None.
    """

    index: int
    layers: int
    keys: Tensor
    values: Tensor
    query_heads: int
    scale: float
    softcap: float | None = None
    observed: Any = None
    rope: Rope | None = None
    output: Tensor | None = None
    question: int | None = None
    positions: Tensor | None = None
    seen: int | None = None
    head: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were seen, evicted ones included. It is also the position of the next token."""
        return self.keys.shape[1] if self.seen is None else self.seen

    def intact_rows(self, rows: int) -> int:
        """How many of the newest `rows` queries still find the keys of their own and all later tokens in the cache."""
        if self.positions is None:
            return rows
        newest = torch.arange(self.tokens - len(self.positions), self.tokens, device=self.positions.device)
        return min(rows, int((self.positions == newest).sum()))

    def token_positions(self, at: slice = slice(None)) -> Tensor:
        """[n] int64: the positions in the text of the cached tokens `at`."""
        if self.positions is not None:
            return self.positions[at]
        return torch.arange(*at.indices(self.keys.shape[1]), device=self.keys.device)


@dataclass(frozen=True)
class Prompt:
    """The text that is compressed, for scorers that ask for extra passes about it.

    ids: its T token ids. encode: text -> token ids, without BOS. head: how many of the ids stand before the user's own
    text, from the chat template. tail: the ids with which the template ends the user's turn and begins the answer; a
    newline where there is no template. question, answer: what follows the prompt, known only to upper bounds
    (`Scorer.needs_answer`).
    """

    ids: tuple[int, ...]
    encode: Callable[[str], Sequence[int]]
    head: int = 0
    tail: tuple[int, ...] = ()
    question: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()


@dataclass(frozen=True)
class ExtraPass:
    """One more forward over the whole, uncompressed cache of a prompt: `ids`, at least one, are run behind the prompt
    and then taken back. A scorer may subclass it, to know in `observe_pass` what the pass was for."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class PassLayer:
    """What one layer shows of an extra pass of n tokens, `asked`, behind a prompt of T `tokens`.

    queries [H, n, d] are those of the pass. keys [K, T + n, d] and values [K, T + n, dv] are the prompt's, then those
    of the pass: views of the cache, from which the pass is taken back afterwards. All else is as in PromptLayer.

    weigh: values [K, m, dv] -> [H, m] float32, the lengths |W_O^h v| of what each query head adds to the layer's output
    for a value (Scorer.needs_output, else None). hidden [n, D]: what the layer's attention got as input, after the
    layer's norm (Scorer.needs_hidden, else None).
    """

    asked: ExtraPass
    index: int
    layers: int
    tokens: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    softcap: float | None = None
    weigh: Callable[[Tensor], Tensor] | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Scorer:
    """Base of all scorers. `sink` and `recent`: how many first and last tokens the scorer's own paper protects."""

    name: str = ""
    sink: int = 0
    recent: int = 0

    needs_answer: ClassVar[bool] = False
    """True for an upper bound, which is not a method to deploy: its extra passes look at the answer in `Prompt`.
    Whoever evicts lets the full cache answer first, and each question then has a compressed cache of its own."""

    needs_hidden: ClassVar[bool] = False
    """True if `observe_pass` uses `PassLayer.hidden`. Models whose layers have no `input_layernorm` are refused."""

    needs_question: ClassVar[bool] = False
    """True if the scorer looks from the question, which must be the end of what is compressed: `PromptLayer.question`.
    Protocols that do not show the question are refused."""

    needs_rope: ClassVar[bool] = False
    """True if the scorer undoes RoPE with `PromptLayer.rope` and `lukv.ops.rotate`. Models that apply another rotation
    are then refused (lukv/backend/rope_check.py)."""

    needs_output: ClassVar[bool] = False
    """True if the scorer weighs values by the output projection: `PromptLayer.output`, `PassLayer.weigh`. Models whose
    output projection cannot be read are refused (lukv/backend/output.py)."""

    def observe(self, observed: Any, queries: Tensor, start: int, rope: Rope | None) -> Any:
        """Fold one chunk of the prompt's queries into what `score` will need of them.

        queries [H, n, d] are post-RoPE and stand at positions start .. start+n-1. `observed` is the result for the
        chunks before this one, None for the first. The prompt may come in any number of chunks, and the result must not
        depend on where it was cut. A scorer that needs no queries returns None.
        """
        return None

    def extra_passes(self, prompt: Prompt) -> Sequence[ExtraPass]:
        """The further forwards that this scorer asks for, the same for the same prompt. None by default.

        The cache stays whole until they are done. Scorers of a sweep that ask for the same ids share the forward.
        """
        return ()

    def observe_pass(self, observed: Any, layer: PassLayer) -> Any:
        """Fold what one layer shows of one extra pass into `observed`, as `observe` does with the prompt's queries.

        Passes come in the order in which they were asked for. `observed` is the result for the prompt and the passes
        before this one. It may not be written into.
        """
        raise NotImplementedError

    @property
    def makes_passes(self) -> bool:
        """Does this scorer ask for extra passes?"""
        return type(self).extra_passes is not Scorer.extra_passes

    def score(self, layer: PromptLayer) -> Tensor:
        """[K, T] float32, finite: the higher a token's score, the more it is worth keeping."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """What distinguishes two scorers of this class, as plain JSON. A budget table records it."""
        return dict(json.loads(json.dumps(asdict(self))))


@dataclass(frozen=True)
class QueryKeeper(Scorer):
    """Base of scorers that look at all of the prompt's queries. They are kept until the layer is ranked, which in a
    sweep is when the whole prompt was read."""

    def observe(
        self, observed: tuple[Tensor, ...] | None, queries: Tensor, start: int, rope: Rope | None
    ) -> tuple[Tensor, ...]:
        """All chunks of queries so far, each [H, n, d]."""
        return (*(observed or ()), queries)

    @staticmethod
    def read_queries(layer: PromptLayer) -> Tensor:
        """[H, n, d]: the queries of all n tokens seen."""
        return torch.cat(layer.observed, 1)


@dataclass(frozen=True)
class Wrapper(Scorer):
    """Base of scorers around another one, `inner`: they see and protect what it sees and protects."""

    inner: Scorer = field(kw_only=True)

    def __post_init__(self) -> None:
        for part in ("sink", "recent"):
            object.__setattr__(self, part, max(getattr(self, part), getattr(self.inner, part)))
        for need in ("needs_rope", "needs_answer", "needs_question", "needs_output", "needs_hidden"):
            object.__setattr__(self, need, getattr(self, need) or getattr(self.inner, need))

    def observe(self, observed: Any, queries: Tensor, start: int, rope: Rope | None) -> Any:
        return self.inner.observe(observed, queries, start, rope)

    def extra_passes(self, prompt: Prompt) -> Sequence[ExtraPass]:
        return self.inner.extra_passes(prompt)

    def observe_pass(self, observed: Any, layer: PassLayer) -> Any:
        return self.inner.observe_pass(observed, layer)

    @property
    def makes_passes(self) -> bool:
        return self.inner.makes_passes

    def check(self, model: Any) -> None:
        """Raise what `inner` raises for a model that it is not made for."""
        if hasattr(self.inner, "check"):
            self.inner.check(model)

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "inner": self.inner.parameters()}
