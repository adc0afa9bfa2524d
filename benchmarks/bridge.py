"""kvpress's presses before and after lukv.bridges.kvpress: bytes of the cache and time of a token, on the same weights.

Both sides run in kvpress's process, under the older transformers that it needs.
"""

from __future__ import annotations

import torch

from benchmarks._kvpress import no_peers, peers
from benchmarks._measure import LARGE, TINY
from benchmarks._section import Section, Skip, run

SHARE = 0.2


def measure(section: Section) -> None:
    if why := no_peers():
        raise Skip(why)
    torch.set_num_threads(1)
    section.text(f"""
        Batch 1, one thread, {SHARE:.0%} kept, key norms as scores, random weights; what is kept has no influence on
        time. All of it under transformers 5.2, which kvpress needs. AdaKV and LUKVPress leave all entries in kvpress's
        cache and mask them at every step; Knorm prunes them, the same number in each head. *packed*: the same press
        through the bridge. *prompt*: prefill with scoring, and packing where there is any, one run; *further token*:
        median.
    """)
    section.head("model, context, press", "prompt, s", "further token, ms", "of stock", "cache, MiB", "of stock")
    for geometry, layers in ((TINY, 4), (LARGE, 2)):
        for tokens in (1024, 4096, 16384) if section.full else (1024,) if geometry is LARGE else (1024, 4096):
            steps = (100 if section.full else 40) // (4 if geometry is LARGE else 1)
            name = geometry.name.split()[0]
            found = peers("bridge", name, layers, tokens, steps, SHARE) or {}
            full = found.pop("full")
            for label, row in {"stock, full cache": full, **dict(sorted(found.items()))}.items():
                section.row(
                    f"{name}, {layers} layers, {tokens}, {label}",
                    f"{row['first']:.3f}",
                    f"{row['token'] * 1e3:.2f}",
                    f"{row['token'] / full['token']:.2f}",
                    f"{row['bytes'] / 2**20:.2f}",
                    f"{row['bytes'] / full['bytes']:.2f}",
                )


if __name__ == "__main__":
    run("kvpress's presses through the bridge: memory and time per token", measure)
