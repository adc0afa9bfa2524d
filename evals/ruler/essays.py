"""The essay haystack: words and sentences of a long text, cut as RULER cuts them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


class Essays:
    """Words by blanks; sentences by punkt, which also breaks at some places without a blank ("it.[1]")."""

    def __init__(self, text: str, punkt: Path) -> None:
        self.words = re.sub(r"\s+", " ", text).split(" ")
        self.punkt = sentence_tokenizer(punkt)
        self.known: dict[int, list[str]] = {}

    def sentences(self, units: int) -> list[str]:
        """Of the first `units` words; from the start again where there are not so many (2024 never asks for more)."""
        if units not in self.known:
            repeats = -(-units // len(self.words))
            self.known[units] = self.punkt.tokenize(" ".join((self.words * repeats)[:units]).strip())
        return self.known[units]


def sentence_tokenizer(folder: Path) -> Any:
    """NLTK's sentence tokenizer with the parameters in `folder` (punkt_tab/english), wherever it is.

    NLTK's own loader reads only from its data path, and changed its argument between releases.
    """
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer  # half a second, only for essays

    def lines(name: str) -> list[str]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: python -m nltk.downloader punkt_tab")
        return (folder / name).read_text(encoding="utf-8").splitlines()

    parameters = PunktParameters()
    parameters.abbrev_types = set(lines("abbrev_types.txt"))
    parameters.sent_starters = set(lines("sent_starters.txt"))
    parameters.collocations = {tuple(line.split("\t")) for line in lines("collocations.tab")}
    for line in lines("ortho_context.tab"):
        word, flags = line.split("\t")
        parameters.ortho_context[word] = int(flags)
    return PunktSentenceTokenizer(parameters)
