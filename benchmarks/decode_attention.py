"""One decoded token's attention in one layer, against the full cache, kvpress's way and the memory's speed.

The variants of a row take turns; their data is larger than the processor's caches, so that each call reads memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from benchmarks._kvpress import no_peers, peers
from benchmarks._measure import DEVICE, DTYPE, LARGE, TINY, WORKING_SET, Geometry, in_turn, uneven
from benchmarks._section import Section, run
from lukv.backend.arena import SLACK, STEP, pack
from lukv.backend.decode import attend_arena
from lukv.backend.format import choose_formats
from lukv.backend.kernels import Kernel, pick
from lukv.backend.parameters import AttentionParameters
from lukv.backend.quantized import pack_quantized

DTYPES = [torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.bfloat16]


def random(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def copies(entries: int, geometry: Geometry, dtype: torch.dtype) -> int:
    """How many times that many entries to have, so that they do not stay in a cache."""
    return max(2, min(64, WORKING_SET // (2 * entries * geometry.head_dim * dtype.itemsize)))


def ragged_arenas(
    geometry: Geometry, lengths: np.ndarray, many: int, dtype: torch.dtype
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Arenas with free rows behind each head, as lukv.backend.arena lays them out, and where the heads begin."""
    capacity = -(-(lengths + SLACK) // STEP) * STEP
    start = torch.tensor(np.cumsum(capacity) - capacity, dtype=torch.int32, device=DEVICE)
    rows = int(capacity.sum())
    shape = rows, geometry.head_dim
    return [(random(dtype, *shape), random(dtype, *shape)) for _ in range(many)], start


def rows(section: Section, geometry: Geometry, dtype: torch.dtype, tokens: int, shares: list[float]) -> None:
    heads, d = geometry.kv_heads, geometry.head_dim
    group, scale = geometry.query_heads // heads, d**-0.5
    query = random(dtype, heads, group, 1, d)
    flat, grouped = query.view(1, -1, 1, d), query.view(1, heads, group, d)
    many = copies(heads * tokens, geometry, dtype)
    fulls = [tuple(random(dtype, 1, heads, tokens, d) for _ in "kv") for _ in range(many)]
    decode, loop = (pick(name, DEVICE, dtype, d, d).decode for name in ("auto", "loop"))
    theirs = peers("attention", geometry.query_heads, heads, d, tokens, *shares) if dtype is DTYPE else None
    for share in shares:
        lengths = uneven(heads, tokens, share)
        longest = int(lengths.max())
        cut = [(k[:, :, :longest].contiguous(), v[:, :, :longest].contiguous()) for k, v in fulls]
        bias = torch.arange(longest, device=DEVICE)[None, None, None] < torch.tensor(lengths)[None, :, None, None]
        arenas, start = ragged_arenas(geometry, lengths, copies(int(lengths.sum()), geometry, dtype), dtype)
        length = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        calls = {
            "full": lambda i: sdpa(flat, *fulls[i % many], scale=scale, enable_gqa=True),
            "grouped": lambda i: sdpa(grouped, *fulls[(i + many // 2) % many], scale=scale),  # not what was just read
            "padded": lambda i, cut=cut, bias=bias: sdpa(grouped, *cut[i % many], attn_mask=bias, scale=scale),
            "ours": lambda i, arenas=arenas, start=start, length=length, longest=longest: decode(
                query, *arenas[i % len(arenas)], start, length, longest, scale, None
            ),
            "floor": lambda i, arenas=arenas: [
                x.view(-1).view(torch.float32).sum() for x in arenas[i // 2 % len(arenas)]
            ],
            "loop": lambda i, arenas=arenas, start=start, length=length, longest=longest: loop(
                query, *arenas[(i + len(arenas) // 2) % len(arenas)], start, length, longest, scale, None
            ),
        }
        rounds = (40 if section.full else 10) * (4 if tokens <= 4096 else 1)
        times = in_turn(calls, rounds)
        floor = times["floor"] * int(lengths.sum()) / len(arenas[0][0])  # without the free rows between the heads
        ms = [f"{times[name] * 1e3:.3f}" for name in ("full", "grouped", "padded", "loop")]
        kvpress = "-" if theirs is None else f"{theirs[str(share)] / theirs['full']:.2f} x full"
        ours = times["ours"]
        section.row(
            f"{geometry.name}, {str(dtype)[6:]}, {tokens}, {share:g}",
            *ms[:3],
            kvpress,
            ms[3],
            f"**{ours * 1e3:.3f}**",
            f"{ours / times['full']:.3f}",
            f"{ours / times['grouped']:.2f}",
            f"{floor * 1e3:.3f}",
            f"{ours / floor:.1f}",
        )


def packed_rows(section: Section, geometry: Geometry, tokens: int, share: float) -> None:
    """Caches in few bits of a bfloat16 model, and the same entries in bfloat16."""
    heads, d, dtype = geometry.kv_heads, geometry.head_dim, torch.bfloat16
    lengths = uneven(heads, tokens, share)
    keep = [torch.arange(tokens, device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]]
    keys, values = ([random(dtype, heads, tokens, d)] for _ in "kv")
    query, parameters = random(dtype, 1, geometry.query_heads, 1, d), AttentionParameters(geometry.query_heads, d**-0.5)
    dense = copy_often(pack(keys, values, keep)[0])
    for cache_dtype in ("int8", "int4"):
        formats = choose_formats(cache_dtype, d, d)
        assert formats is not None
        packed = copy_often(pack_quantized(keys, values, keep, formats)[0])
        memory = [[view_floats(x) for x in (arena.packed.keys, arena.packed.values)] for arena in packed]
        loop, ours = (pick(name, DEVICE, dtype, d, d, cache_dtype=cache_dtype) for name in ("loop", "auto"))
        half, quarter = len(packed) // 2, len(packed) // 4  # none reads what another has just read
        calls = {
            "loop": attend_in_turn(loop, query, packed[half:] + packed[:half], parameters),
            "bfloat16": attend_in_turn(pick("auto", DEVICE, dtype, d, d), query, dense, parameters),
            "ours": attend_in_turn(ours, query, packed, parameters),
            "floor": lambda i, memory=memory, ahead=quarter: [x.sum() for x in memory[(i + ahead) % len(memory)]],
        }
        times = in_turn(calls, 40 if section.full else 10)
        counted = int(packed[0].row_nbytes.sum())
        floor = times["floor"] * counted / packed[0].packed.nbytes  # and of the recent entries
        section.row(
            f"{geometry.name}, {cache_dtype}, {tokens}, {share:g}",
            f"{counted / int(dense[0].row_nbytes.sum()):.2f}",
            *(f"{times[name] * 1e3:.3f}" for name in ("loop", "bfloat16")),
            f"**{times['ours'] * 1e3:.3f}**",
            f"{times['ours'] / times['loop']:.3f}",
            f"{times['ours'] / times['bfloat16']:.2f}",
            f"{floor * 1e3:.3f}",
            f"{times['ours'] / floor:.1f}",
        )


def copy_often(arena: Any) -> list[Any]:
    """Copies in memory of their own, so many that they do not stay in a cache."""
    return [arena.copy_rows([0]) for _ in range(max(2, min(64, WORKING_SET // arena.nbytes)))]


def view_floats(x: Tensor) -> Tensor:
    """Bytes as float32, all but the last few of them."""
    return x.view(-1)[: x.numel() // 4 * 4].view(torch.float32)


def attend_in_turn(
    kernel: Kernel, query: Tensor, arenas: list[Any], parameters: AttentionParameters
) -> Callable[[int], Tensor]:
    return lambda i: attend_arena(kernel, query, arenas[i % len(arenas)], parameters)


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text(f"""
        One new token, one layer, one thread; milliseconds, medians. The heads keep 0.25 to 1.75 of the mean. *full*:
        torch's SDPA over the whole cache, as transformers calls it; *grouped*: the same with a group's query heads as
        query rows; *padded*: the kept entries padded to the longest head, with a mask; *kvpress*: its attention
        function for head-wise methods, which keeps the whole cache and replaces the evicted keys at every token,
        against SDPA in its own process; *loop*: our kernel that needs no compiler; *ours*: the one that `auto` takes
        here, {pick("auto", DEVICE, DTYPE, 128, 128).name}; *floor*: a plain sum over as many bytes, in turn with the
        others.
    """)
    if why := no_peers():
        section.text(f"kvpress is not measured: {why}.")
    columns = ("full", "grouped", "padded", "kvpress", "loop", "ours", "of full", "of grouped", "floor", "of floor")
    section.head("heads, numbers, context, kept", *columns)
    shares = [0.05, 0.1, 0.2, 0.5, 1.0] if section.full else [0.05, 0.2, 1.0]
    lengths = (1024, 4096, 16384, 32768) if section.full else (1024, 16384)
    for geometry in (TINY, LARGE):
        for dtype in DTYPES:
            for tokens in lengths:
                rows(section, geometry, dtype, tokens, shares)
    if pick("auto", DEVICE, torch.bfloat16, 128, 128, cache_dtype="int8").decode_packed is None:
        return
    section.text("""
        The same of caches in few bits, of a bfloat16 model. *bytes*: of the entries, as a share of what they take in
        bfloat16; *loop*: it unpacks all entries for every token; *bfloat16*: *ours* over the same entries in bfloat16;
        *ours*: it reads the codes; *floor*: a plain sum over as many bytes as the packed entries take.
    """)
    section.head(
        "heads, cache_dtype, context, kept",
        "bytes",
        "loop",
        "bfloat16",
        "ours",
        "of loop",
        "of bfloat16",
        "floor",
        "of floor",
    )
    for geometry in (TINY, LARGE):
        for tokens in lengths:
            for share in (0.05, 0.2, 1.0):
                packed_rows(section, geometry, tokens, share)


if __name__ == "__main__":
    run("Decode attention, one layer", measure)
