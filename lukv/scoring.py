"""What a scorer is: how much does each cached token of each KV head matter?

A scorer works on one sequence without padding (the backend cuts a padded batch into its rows), right after a layer's
prefill attention. It is a pure function of tensors: no model, no cache, no state of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [n] -> (cos, sin), each [n, rotary dims] float32, in the half-split layout of `rotate_half`."""


@dataclass(frozen=True)
class PromptLayer:
    """One layer's view of one prompt of T tokens, K KV heads, H = G*K query heads (group k: heads k*G .. k*G+G-1).

    keys [K, T, d] post-RoPE, values [K, T, dv], both in the model's dtype. `observed` is what `Scorer.observe` made of
    the prompt's queries. `scale` multiplies q.k; `softcap` is the logit soft cap of Gemma-2 (None elsewhere).

    After an earlier eviction (lukv/backend/reeviction.py) the layer is shown one KV head at a time, K = 1, and `head`
    says which. Then keys and values are those of the T tokens that are left of the `seen` ones, and `positions` [T]
    int64, ascending, are their original positions. For a whole prompt all three are None.
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
    positions: Tensor | None = None
    seen: int | None = None
    head: int | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were seen, those that are gone included: the position of the next one."""
        return self.keys.shape[1] if self.seen is None else self.seen

    def places(self, at: slice = slice(None)) -> Tensor:
        """[n] int64: the positions of the keys `at`."""
        if self.positions is not None:
            return self.positions[at]
        return torch.arange(*at.indices(self.keys.shape[1]), device=self.keys.device)


@dataclass(frozen=True)
class Scorer:
    """Base of all scorers. `sink` first and `recent` last tokens are those that the scorer's own paper protects."""

    name: str = ""
    sink: int = 0
    recent: int = 0

    needs_utility: ClassVar[bool] = False
    """True for an upper bound, not a method to deploy: `observed` is the long-horizon utility [K, T] of this prompt for
    one question, which whoever evicts measures first (lukv/budgets/oracle.py) and hands to `RaggedCache.select`."""

    needs_rope: ClassVar[bool] = False
    """True: turns queries or keys back with `PromptLayer.rope` and `rotate`, so the model must turn them that way
    (lukv/backend/rope_check.py)."""

    def observe(self, observed: Any, queries: Tensor, start: int, rope: Rope | None) -> Any:
        """Fold a piece of the prompt's post-RoPE queries [H, n, d], at positions start .. start+n-1, into what `score`
        will need of them. `observed` is the result for the pieces before it (None for the first). The prompt may come
        in any number of pieces; the result must not depend on how it was cut. Scorers without queries keep None."""
        return None

    def score(self, layer: PromptLayer) -> Tensor:
        """[K, T] float32, finite; the higher, the more worth keeping."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """What two scorers of this class may differ in, for the metadata of a budget table: plain JSON."""
        return dict(json.loads(json.dumps(asdict(self))))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of x [..., d] in the half-split layout; dimensions beyond the rotary ones stay as they are."""
    half, n = cos.shape[-1] // 2, cos.shape[-1]
    x1, x2 = x[..., :half], x[..., half:n]
    y1 = torch.addcmul(x1 * cos[..., :half], x2, sin[..., :half], value=-1)
    y2 = torch.addcmul(x2 * cos[..., half:], x1, sin[..., half:])
    return torch.cat([y1, y2, x[..., n:].expand(*y1.shape[:-1], -1)], -1)


@torch.no_grad()
def row_mass(
    queries: Tensor,
    keys: Tensor,
    scale: float,
    first_position: int,
    softcap: float | None = None,
    reduce: Literal["mean", "max"] = "mean",
    columns: int | None = None,
    block: int | None = None,
) -> Tensor:
    """How much attention each key gets from some consecutive query rows: [H, columns], mean or max over the rows.

    queries [H, n, d] post-RoPE at positions first_position .. first_position+n-1; keys [K, T, d] post-RoPE, H = G*K.
    Row i attends to the keys up to its own position: the softmax runs over all of them, is then cut to the first
    `columns` keys (default T) and not renormalised. Computed in float32 (float64 for float64 inputs). `block` bounds
    the logits that are alive at once, in elements, whatever T is. Longer key lists are passed twice: once for each
    row's log-sum-exp, once for the mass; T x T never exists.
    """
    heads, rows, width = queries.shape
    groups, tokens = keys.shape[:2]
    columns = tokens if columns is None else columns
    if heads % groups or keys.shape[2] != width:
        raise ValueError(
            f"queries {list(queries.shape)} do not fit keys {list(keys.shape)}: H must be a multiple of K, d equal"
        )
    if not 0 <= columns <= tokens or first_position < 0 or rows < 1:
        raise ValueError(
            f"row_mass needs n >= 1, first_position >= 0, columns <= T: {rows}, {first_position}, {columns} of {tokens}"
        )
    if reduce not in ("mean", "max"):
        raise ValueError(f"reduce={reduce!r}: use 'mean' or 'max'")
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    block = block or (1 << 26 if keys.is_cuda else 1 << 20)  # about a CPU core's cache; a GPU wants few, large launches
    lines = heads // groups * rows
    span = min(tokens, max(64, block // lines))  # keys per block
    batch = max(1, block // (lines * span))  # KV heads per block
    # the heads of a group are just more rows against the same keys: K is never repeated
    scaled = (queries.to(dtype) * scale).reshape(groups, lines, width)
    last = torch.arange(first_position, first_position + rows, device=keys.device).repeat(heads // groups)[:, None]

    def logits(part: slice, start: int) -> Tensor:
        end = min(start + span, tokens)
        out = scaled[part] @ keys[part, start:end].to(dtype).transpose(1, 2)
        if softcap is not None:
            out = out.div_(softcap).tanh_().mul_(softcap)
        if end - 1 > first_position:
            out.masked_fill_(torch.arange(start, end, device=keys.device) > last, -torch.inf)
        return out

    mass = keys.new_empty(groups, heads // groups, columns, dtype=dtype)
    for first in range(0, groups, batch):
        part = slice(first, first + batch)
        if span == tokens:
            probabilities = logits(part, 0).softmax(-1)
            mass[part] = _over_rows(probabilities[..., :columns], rows, reduce)
            continue
        norm = torch.full((len(scaled[part]), lines), -torch.inf, dtype=dtype, device=keys.device)
        for start in range(0, tokens, span):
            norm = torch.logaddexp(norm, logits(part, start).logsumexp(-1))
        for start in range(0, columns, span):
            probabilities = logits(part, start).sub_(norm[..., None]).exp_()
            end = min(start + span, columns)
            mass[part, :, start:end] = _over_rows(probabilities[..., : end - start], rows, reduce)
    return mass.reshape(heads, columns)


def _over_rows(probabilities: Tensor, rows: int, reduce: str) -> Tensor:
    """[K, G * rows, columns] -> [K, G, columns]."""
    by_row = probabilities.unflatten(1, (-1, rows))
    return by_row.mean(2) if reduce == "mean" else by_row.amax(2)
