"""What few bits do to attention: docs/beyond-embedded.md, "Layouts in few bits".

    python -m scripts.studies.formats models/tiny
    python -m scripts.studies.formats models/smollm2-135m-q4/SmolLM2-135M-Instruct.Q4_1.gguf

Of prompts of RULER, the context's keys (or values) are stored in each layout and read back. The error is that of the
attention output of the question's tokens over the context: the norm of its difference as a share of its norm, the mean
over prompts, layers, query heads and tokens. Bytes are those of one vector, its scales and zero points included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from evals.ruler import Ruler
from evals.text import table
from lukv.backend.format import GROUP, Format
from lukv.backend.generate import append, compress
from lukv.backend.quantized import RECENT
from lukv.model import LoadedModel, load

TASKS = ["niah_single_1", "niah_multikey_1_prose", "vt"]
SEED = 20_043
BITS, KINDS = (8, 4), ("keys", "values")
Layout = Callable[[Tensor, int], Tensor]
"""Vectors [K, T, d] and bits -> the vectors as they are read back."""


def round_to_codes(x: Tensor, dim: int, bits: int) -> Tensor:
    """One exact scale and zero point along `dim`."""
    low, high = x.amin(dim, True), x.amax(dim, True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return ((x - low) / step).round() * step + low


def by_entry(x: Tensor, bits: int) -> Tensor:
    return round_to_codes(x, -1, bits)


def by_group(x: Tensor, bits: int) -> Tensor:
    """What the backend does."""
    format = Format(bits, x.shape[-1])
    return format.unpack(format.pack(x.flatten(0, -2)), x.dtype).view_as(x)


def by_channel(x: Tensor, bits: int) -> Tensor:
    return round_to_codes(x, -2, bits)


def by_block(x: Tensor, bits: int) -> Tensor:
    """A scale for each channel of 32 neighbouring entries, as KIVI (arXiv 2402.02750) stores keys."""
    whole = x.shape[-2] // GROUP * GROUP
    blocks = round_to_codes(x[..., :whole, :].unflatten(-2, (-1, GROUP)), -2, bits).flatten(-3, -2)
    return torch.cat([blocks, x[..., whole:, :]], -2)


LAYOUTS: dict[str, tuple[Layout, Callable[[int], float]]] = {
    "each entry": (by_entry, lambda d: 4),
    "groups of up to 32 channels of an entry": (by_group, lambda d: 4 * Format(8, d).groups),
    "each channel, over all entries": (by_channel, lambda d: 0),
    "each channel, over 32 entries": (by_block, lambda d: 4 * d / GROUP),
}
"""Name -> the layout, and the bytes of scales and zero points of a vector of d channels."""


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """query [H, n, d], keys [K, T, d], values [K, T, dv] -> [H, n, dv]."""
    group = len(query) // len(keys)
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    return (query @ keys.mT * scale).softmax(-1) @ values


def spare_last(layout: Layout, count: int, x: Tensor, bits: int) -> Tensor:
    """The layout, with the last entries as they are."""
    return torch.cat([layout(x[:, :-count], bits), x[:, -count:]], 1)


@torch.no_grad()
def measure(loaded: LoadedModel, samples: int = 2, length: int = 1024) -> list[list[str]]:
    """Rows of a table: layout, then bytes and errors of keys and of values for each number of bits."""
    layouts = {name: layout for name, (layout, _) in LAYOUTS.items()}
    layouts |= {f"the second, the last {n} entries as they are": partial(spare_last, by_group, n) for n in (4, 8, 32)}
    errors: dict[tuple[str, int, str], list[float]] = {}
    dim = 0
    for task in Ruler(length=length, tasks=TASKS, samples=samples, seed=SEED).tasks(loaded.tokenizer):
        for sample in task.samples:
            context, question = loaded.prompt_ids(sample.context, sample.question, sample.answer_prefix)
            cache = compress(loaded, [context], record_queries=True)
            append(loaded, cache, [question])
            for index, layer in enumerate(cache.evictable):
                keys, values = (x[:, : len(context)].double() for x in cache.view_entries(index, 0))
                query, dim = cache.read_queries(index)[0].double(), keys.shape[-1]
                right = attend(query, keys, values, layer.parameters.scale)
                for name, layout in layouts.items():
                    for bits in BITS:
                        for kind, pair in {
                            "keys": (layout(keys, bits), values),
                            "values": (keys, layout(values, bits)),
                        }.items():
                            off = attend(query, *pair, layer.parameters.scale) - right
                            found = (off.norm(dim=-1) / right.norm(dim=-1)).mean()
                            errors.setdefault((name, bits, kind), []).append(float(found))
    rows = [["scale and zero point for", *(f"{bits} bits: {what}" for bits in BITS for what in ("bytes", *KINDS))]]
    for name in layouts:
        row = [name]
        for bits in BITS:
            size = LAYOUTS[name][1](dim) + dim * bits / 8 if name in LAYOUTS else None
            row.append("" if size is None else f"{size:g}")
            row += [f"{100 * sum(e := errors[name, bits, kind]) / len(e):.2f}%" for kind in KINDS]
        rows.append(row)
    return rows


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("give one model: a folder or FILE.gguf")
    print(table(measure(load(arguments[0], dtype="float32"))))
    print(f"The backend spares the last {RECENT}.")


if __name__ == "__main__":
    main(sys.argv[1:])
