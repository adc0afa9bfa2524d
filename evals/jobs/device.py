"""The device's memory and clock: peaks, waiting for it to finish, and too little memory in whatever way it is said."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

from lukv.checkpoint import OUT_OF_MEMORY


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read now tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_peak_bytes() -> int:
    """Peak memory since the start or the last `reset_peak`: of the GPU, or without one of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(x for x in status.read_text().splitlines() if x.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Let the next `read_peak_bytes` count from here on. On a CPU this works only where Linux allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def describe_out_of_memory(error: BaseException) -> str | None:
    """One line if the error says that memory ran out, else None. On the CPU torch raises a plain RuntimeError."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or OUT_OF_MEMORY.search(text):
        return f"out of memory: {text or 'Python could not allocate more'}"
    return None
