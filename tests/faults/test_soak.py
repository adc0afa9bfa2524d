"""Samples without end on the random model: memory, speed and open files stay where they are."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.as_typed import Command
from tests.faults.conftest import jsonl, question

MINUTES = float(os.environ.get("LUKV_SOAK_MINUTES", "3"))
SAMPLES = 40
"""Samples of one run; runs follow each other in one process, as in a sweep."""


def resident_mib() -> float:
    """What of this process is in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_nothing_grows(command: Command, short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(tmp_path / "questions.jsonl", [question(i, words=40 + i) for i in range(SAMPLES)])
    methods = ("snapkv", "adakv", "expected_attention", "keydiff")
    memory, files, speed = [], [], []
    until = time.monotonic() + 60 * MINUTES
    while time.monotonic() < until or len(memory) < 12:
        args = [*short, f"method={methods[len(memory) % 4]}", "batch_size=4", f"runs={tmp_path}/r{len(memory)}"]
        begin = time.process_time()
        assert command(*args) == 0
        speed.append((time.process_time() - begin) / SAMPLES)
        capsys.readouterr()
        gc.collect()
        memory.append(resident_mib())
        files.append(len(list(Path("/proc/self/fd").iterdir())))
    warm = memory[4:]  # the first round of methods fills caches
    growth = np.polyfit(np.arange(len(warm)), warm, 1)[0] / SAMPLES * 1000
    rounds = [np.mean(speed[i : i + 4]) for i in range(4, len(speed) - 3, 4)]
    with capsys.disabled():
        print(
            f"\n{len(memory) * SAMPLES} samples in {len(memory)} runs: memory {warm[0]:.0f} -> {warm[-1]:.0f} MiB "
            f"({growth:+.2f} MiB a thousand samples), open files {files[4]} -> {files[-1]}, "
            f"{1000 * rounds[0]:.0f} -> {1000 * rounds[-1]:.0f} ms of CPU a sample"
        )
    assert files[-1] == files[4]
    assert warm[-1] - warm[0] < 20
    assert growth < 5
    assert min(rounds[len(rounds) // 2 :]) < 1.5 * min(rounds[: len(rounds) // 2 or 1])
