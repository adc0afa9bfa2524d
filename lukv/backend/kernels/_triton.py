"""The device code of the triton kernel."""

import triton
import triton.language as tl


@triton.jit
def attend_part(
    query,  # [N, ROWS, HEAD_DIM]; row g * TOKENS + t is query head g at new token t
    keys,
    values,
    start,
    length,
    sums,  # out [N, PARTS, rows, VALUE_DIM]: sum of exp(logit - top) * value
    top,  # out [N, PARTS, rows]: largest logit of the part, -inf without entries
    weight,  # out [N, PARTS, rows]: sum of exp(logit - top)
    scale,
    softcap,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PADDED_HEAD_DIM: tl.constexpr,
    PADDED_VALUE_DIM: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    sequence, part, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entries = tl.load(length + sequence)
    first = tl.load(start + sequence).to(tl.int64)
    per_part = tl.cdiv(tl.cdiv(entries, PARTS), BLOCK_KEYS) * BLOCK_KEYS
    low = part * per_part
    high = tl.minimum(low + per_part, entries)

    rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    seen = entries - TOKENS + rows % TOKENS + 1  # how many entries each row sees
    d = tl.arange(0, PADDED_HEAD_DIM)
    dv = tl.arange(0, PADDED_VALUE_DIM)
    q = tl.load(
        query + (sequence * ROWS + rows)[:, None] * HEAD_DIM + d[None, :],
        mask=(rows < ROWS)[:, None] & (d < HEAD_DIM)[None, :],
        other=0.0,
    )
    best = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    out = tl.zeros([BLOCK_ROWS, PADDED_VALUE_DIM], tl.float32)
    for begin in range(low, high, BLOCK_KEYS):
        column = begin + tl.arange(0, BLOCK_KEYS)
        inside = (column < high)[:, None]
        k = tl.load(
            keys + (first + column)[:, None] * HEAD_DIM + d[None, :], mask=inside & (d < HEAD_DIM)[None, :], other=0.0
        )
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if SOFTCAP:
            logits = softcap * (1 - 2 / (tl.exp(2 * logits / softcap) + 1))  # tanh
        visible = (column < high)[None, :] & (column[None, :] < seen[:, None])
        logits = tl.where(visible, logits, float("-inf"))
        higher = tl.maximum(best, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing yet: avoid inf - inf
        p = tl.exp(logits - base[:, None])
        decay = tl.exp(best - base)
        v = tl.load(
            values + (first + column)[:, None] * VALUE_DIM + dv[None, :],
            mask=inside & (dv < VALUE_DIM)[None, :],
            other=0.0,
        )
        out = out * decay[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        total = total * decay + tl.sum(p, 1)
        best = higher
    at = (sequence * PARTS + part) * tl.num_programs(2) * BLOCK_ROWS + rows
    tl.store(top + at, best)
    tl.store(weight + at, total)
    tl.store(sums + at[:, None] * VALUE_DIM + dv[None, :], out, mask=(dv < VALUE_DIM)[None, :])
