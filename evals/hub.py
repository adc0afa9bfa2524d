"""Data sets on the Hugging Face hub: a file or a split of one, or one line that says why there is none.

No data set script is run. Without a network what is in the hub's cache is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evals.rows import Row, check_row


def names_hub(source: str) -> bool:
    """Whether a setting names a data set of the hub, OWNER/NAME, and nothing that lies here.

    >>> names_hub("THUDM/LongBench"), names_hub("./longbench"), names_hub("longbench")
    (True, False, False)
    """
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def download(name: str, file: str) -> Path:
    """A file of a data set. Raises FileNotFoundError."""
    from huggingface_hub import hf_hub_download  # needed only here

    from lukv.checkpoint import hub_answers

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", local_files_only=not hub_answers()))
    except Exception as error:  # a dozen of its own kinds: no network, no such set, no such file
        raise FileNotFoundError(f"the hub says: {first_line(error)}") from error


def load_split(name: str, configuration: str, split: str, columns: Mapping[str, type]) -> list[Row]:
    """All rows of a split. columns: those that every row must have, with their types.

    Raises FileNotFoundError, or ValueError for a row that lacks a column.
    """
    from huggingface_hub import constants  # needed only here

    from lukv.checkpoint import hub_answers

    if not constants.HF_HUB_OFFLINE and not hub_answers():  # load_dataset would try for most of a minute
        raise FileNotFoundError("the hub cannot be reached (HF_HUB_OFFLINE=1 uses what is in its cache)")
    from datasets import load_dataset  # heavy, and needed only here

    try:
        rows = load_dataset(name, configuration, split=split)
    except Exception as error:  # a dozen of its own kinds: no network, no such set, no such configuration
        raise FileNotFoundError(f"the hub says: {first_line(error)}") from error
    numbered = ((f"{name} {configuration} row {number}", dict(row)) for number, row in enumerate(rows, start=1))
    return [(place, check_row(row, place, columns)) for place, row in numbered]


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
