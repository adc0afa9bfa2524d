"""The maths that scorers share: rotary embedding, the attention that keys get from some query rows, what a value is
worth behind the output projection, and rankings in which two scores have a say."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lukv.scoring import PromptLayer


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [..., d] in the half-split layout. cos and sin are [n, rotary dims] or [rotary dims]. Dimensions
    beyond the rotary ones stay as they are."""
    half, n = cos.shape[-1] // 2, cos.shape[-1]
    y = x[..., :n] * cos
    y[..., :half].addcmul_(x[..., half:n], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y if n == x.shape[-1] else torch.cat([y, x[..., n:].expand(*y.shape[:-1], -1)], -1)


@torch.no_grad()
def attention_mass(
    queries: Tensor,
    keys: Tensor,
    scale: float,
    first_position: int,
    softcap: float | None = None,
    reduce: Literal["mean", "max"] = "mean",
    columns: int | None = None,
    block: int | None = None,
    row_weights: Tensor | None = None,
) -> Tensor:
    """The attention probability that each key gets from consecutive query rows: [H, columns], the rows' mean or max.

    queries [H, n, d] are post-RoPE and stand at positions first_position .. first_position+n-1. keys [K, T, d] are
    post-RoPE, and H = G*K. Row i attends to the keys up to its own position. Its softmax runs over all of these keys;
    the result is then cut to the first `columns` keys (default T) and not renormalised. `row_weights` [n] multiply each
    row's probabilities before the rows are reduced.

    The result is float32 (float64 for float64 keys). `block` bounds the number of logits in memory at a time, so no
    T x T matrix exists. Key lists that do not fit into a block are read twice: once for each row's log-sum-exp, once
    for the probabilities. Raises ValueError for shapes and positions that do not fit together.
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
            "attention_mass needs n >= 1, first_position >= 0, columns <= T: "
            f"{rows}, {first_position}, {columns} of {tokens}"
        )
    if reduce not in ("mean", "max"):
        raise ValueError(f"reduce={reduce!r}: use 'mean' or 'max'")
    dtype = accumulate(keys)
    block = block or (1 << 26 if keys.is_cuda else 1 << 20)  # a CPU core's cache; a GPU wants few, large launches
    lines = heads // groups * rows
    span = min(tokens, max(64, block // lines))  # keys per block
    batch = max(1, block // (lines * span))  # KV heads per block
    # the query heads of a group are more rows against the same keys, so that K is never repeated
    scaled = (queries.to(dtype) * scale).reshape(groups, lines, width)
    weights = None if row_weights is None else row_weights.to(dtype).repeat(heads // groups)[:, None]
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
            probabilities = logits(part, 0).softmax(-1)[..., :columns]
            mass[part] = _reduce_rows(probabilities, rows, reduce, weights)
            continue
        norm = torch.full((len(scaled[part]), lines), -torch.inf, dtype=dtype, device=keys.device)
        for start in range(0, tokens, span):
            norm = torch.logaddexp(norm, logits(part, start).logsumexp(-1))
        for start in range(0, columns, span):
            probabilities = logits(part, start).sub_(norm[..., None]).exp_()
            end = min(start + span, columns)
            mass[part, :, start:end] = _reduce_rows(probabilities[..., : end - start], rows, reduce, weights)
    return mass.reshape(heads, columns)


@torch.no_grad()
def attention_rows(
    queries: Tensor, keys: Tensor, scale: float, first_position: int, softcap: float | None = None
) -> Tensor:
    """The probabilities themselves, for one KV head: [G, n, first_position], cut to the keys before the first row and
    not renormalised.

    queries [G, n, d] stand at positions first_position .. first_position+n-1 and keys [T, d] include them. All n rows
    are in memory at once, so this is for windows. float32 (float64 for float64 keys).
    """
    dtype = accumulate(keys)
    logits = queries.to(dtype) * scale @ keys.to(dtype).T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    own = first_position + torch.arange(queries.shape[1], device=keys.device)
    later = torch.arange(len(keys), device=keys.device) > own[:, None]
    return logits.masked_fill_(later, -torch.inf).softmax(-1)[..., :first_position]


def _reduce_rows(probabilities: Tensor, rows: int, reduce: str, weights: Tensor | None) -> Tensor:
    """[K, G * rows, columns] -> [K, G, columns]: mean or max over the rows of each query head, times weights [G * rows,
    1]."""
    by_row = (probabilities if weights is None else probabilities * weights).unflatten(1, (-1, rows))
    return by_row.mean(2) if reduce == "mean" else by_row.amax(2)


def output_gram(projection: Tensor, heads: int) -> Tensor:
    """Each head's Gram matrix W^T W, [H, dv, dv], of an output projection W_O [hidden, H * dv].

    With it |W v|^2 = v^T (W^T W) v, and W v, of the hidden size, is never built. The result is float32 (float64 for
    float64).
    """
    blocks = projection.detach().to(accumulate(projection)).unflatten(1, (heads, -1)).transpose(0, 1)
    return blocks.transpose(1, 2) @ blocks


@torch.no_grad()
def value_weight(values: Tensor, gram: Tensor, normalise: bool = True, block: int = 512) -> Tensor:
    """n [H, T]: the length of each token's value after each head's output projection.

    values [K, T, dv]; gram [H, dv, dv] from `output_gram`. With `normalise` the result sums to 1. `block` tokens are
    computed at a time, which bounds the memory needed beside the result.
    """
    heads, tokens = len(gram), values.shape[1]
    grouped = gram.unflatten(0, (len(values), -1))
    weight = gram.new_empty(heads, tokens)
    for start in range(0, tokens, block):
        v = values[:, None, start : start + block].to(gram.dtype)
        square = ((v @ grouped) * v).sum(-1)
        weight[:, start : start + block] = square.clamp(min=0).sqrt().flatten(0, 1)
    return weight / weight.sum() if normalise else weight


@torch.no_grad()
def utility(queries: Tensor, keys: Tensor, weight: Tensor, scale: float, softcap: float | None = None) -> Tensor:
    """U [K, T] of one layer, float32 (float64 for float64).

    keys [K, T + m, d] are post-RoPE: T context tokens, then m tokens of the question and the answer. queries [H, n, d]
    are the post-RoPE rows of the newest n <= m of these tokens. weight [H, T] is n of `value_weight`.
    """
    tokens, rows = weight.shape[1], queries.shape[1]
    if not 0 < rows <= keys.shape[1] - tokens:
        raise ValueError(f"{rows} rows cannot come after {tokens} context tokens in a cache of {keys.shape[1]}")
    first = keys.shape[1] - rows
    # n is the same at every step, so the maximum over steps can be taken before the product
    attention = attention_mass(queries, keys, scale, first, softcap, reduce="max", columns=tokens)
    return (attention * weight).unflatten(0, (len(keys), -1)).amax(1)


def accumulate(tensor: Tensor) -> torch.dtype:
    """The dtype to add up in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def rank_in_two_stages(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The order [K, T] int64, best first, whose n first tokens are, for every n,

    the best floor(share * n) tokens of each row of `first`, and of the others the best of `second`.

    Such sets are nested, so one ranking serves every budget. first and second are scores [K, T]; of equal scores the
    later token is better. `share` is a decimal in [0, 1] and is taken as it is written.
    """
    ranks = [scores.flip(-1).argsort(dim=-1, descending=True, stable=True) for scores in (first, second)]
    one, two = ((first.shape[-1] - 1 - order).tolist() for order in ranks)
    part = Fraction(str(share))
    orders = [_merge(*pair, part.numerator, part.denominator) for pair in zip(one, two, strict=True)]
    return torch.tensor(orders, device=first.device).reshape(first.shape)


def _merge(first: list[int], second: list[int], numerator: int, denominator: int) -> list[int]:
    """One row of `rank_in_two_stages`: two rankings, best first -> one."""
    tokens = len(first)
    taken = bytearray(tokens)
    order: list[int] = []
    ahead = chosen = 0  # how far the rankings were read
    for n in range(1, tokens + 1):
        token = -1
        if n * numerator // denominator > chosen:
            token = first[chosen]
            chosen += 1
        if token < 0 or taken[token]:  # who is in the set already leaves its place to the other ranking
            while taken[second[ahead]]:
                ahead += 1
            token = second[ahead]
        taken[token] = 1
        order.append(token)
    return order


def deal_scores(scores: Tensor, order: Tensor) -> Tensor:
    """Each row's scores [K, T] float32, handed out anew: the highest to the first token of order [K, T], and so on.

    Heads that compete by their scores then share a budget as they would by the old ones, while each keeps its tokens in
    the new order. Equal scores become different ones, by one float each, so that no tie rule changes this order.
    """
    best = scores.sort(-1, descending=True).values.contiguous().view(torch.int32).long()
    step = torch.arange(best.shape[-1], device=best.device)
    # floats as integers of the same order, which are then made to fall by one at least
    rising = torch.where(best < 0, -(2**31) - best, best) + step
    falling = rising.cummin(-1).values - step
    bits = torch.where(falling < 0, -(2**31) - falling, falling).int()
    return torch.empty_like(scores).scatter_(-1, order, bits.view(torch.float32))


def draw_sketch(layer: PromptLayer, width: int, columns: int, seed: int) -> Tensor:
    """A Gaussian matrix for each KV head of a layer, [K, width, columns] float32, the same on every device."""
    heads = range(len(layer.keys)) if layer.head is None else [layer.head]
    draws = [np.random.default_rng([seed, layer.index, head]).standard_normal((width, columns)) for head in heads]
    return torch.from_numpy(np.stack(draws).astype(np.float32)).to(layer.keys.device)
