"""Too little memory, in whatever way torch or Python says it."""

from __future__ import annotations

import torch

from lukv.model import OUT_OF_MEMORY


def out_of_memory(error: BaseException) -> str | None:
    """One line if that is what the error says, else None. On the CPU torch raises a plain RuntimeError."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or OUT_OF_MEMORY.search(text):
        return f"out of memory: {text or 'Python could not allocate more'}"
    return None
