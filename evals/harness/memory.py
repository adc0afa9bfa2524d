"""Too little memory, in whatever way torch or Python says it."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> str | None:
    """One line if that is what the error says, else None. On the CPU torch raises a plain RuntimeError."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return f"out of memory: {text or 'Python could not allocate more'}"
    return None
