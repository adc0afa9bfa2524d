"""The word lists RULER draws from: wonderwords 2.2.0, as installed. 3.x lacks four nouns, which shifts every sample."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata, resources
from itertools import accumulate, groupby
from typing import overload

WONDERWORDS = "2.2.0"


@lru_cache
def read_list(name: str) -> tuple[str, ...]:
    """Words of nounlist.txt, adjectivelist.txt or verblist.txt, in file order. ValueError for another version."""
    installed = metadata.version("wonderwords")
    if installed != WONDERWORDS:
        raise ValueError(
            f"RULER's samples need wonderwords {WONDERWORDS}, but {installed} is installed: "
            f"pip install wonderwords=={WONDERWORDS}"
        )
    text = (resources.files("wonderwords") / "assets" / name).read_text(encoding="utf-8")
    return tuple(line.rstrip() for line in text.splitlines())


@lru_cache
def common_words() -> tuple[str, ...]:
    """All nouns, adjectives and verbs, sorted, each once (8,169)."""
    lists = (read_list(f"{kind}list.txt") for kind in ("noun", "adjective", "verb"))
    return tuple(sorted({word for words in lists for word in words}))


@lru_cache
def needle_words() -> Sequence[str]:
    """RULER's needle keys: all "adjective-noun", sorted, each once (6,175,260)."""
    return SortedPairs(read_list("adjectivelist.txt"), read_list("nounlist.txt"))


class SortedPairs(Sequence[str]):
    """`sorted({f"{a}-{b}" for a in first for b in second})` without building it: the list takes 0.7 GB and ten seconds.

    Pairs of one first word are contiguous in sorted order and ordered as the second words are, unless "word-" begins
    another first word with its hyphen ("x" and "x-rated"): such families, and only they, are built and merged.
    """

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self.second = sorted(set(second))
        stems = sorted({f"{word}-" for word in first})
        family = ""
        families = []
        for stem in stems:
            family = family if family and stem.startswith(family) else stem
            families.append(family)
        self.blocks: list[str | list[str]] = []  # a stem alone, or all pairs of a family of stems
        for _, group in groupby(zip(families, stems, strict=True), key=lambda pair: pair[0]):
            members = [stem for _, stem in group]
            if len(members) == 1:
                self.blocks.append(members[0])
            else:
                self.blocks.append(sorted({stem + word for stem in members for word in self.second}))
        sizes = (len(self.second) if isinstance(block, str) else len(block) for block in self.blocks)
        self.starts = list(accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.starts, index) - 1
        block, place = self.blocks[number], index - self.starts[number]
        return block + self.second[place] if isinstance(block, str) else block[place]
