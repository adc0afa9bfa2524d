"""Where SmolLM2's file lies, and what becomes of the tests that need it where it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "models" / "smollm2-135m-q4" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def need_file() -> Path:
    """Skips where nobody has fetched it. Fails in CI, which fetches it, unless CI says that it could not."""
    if not FILE.exists():
        if os.environ.get("CI") and not os.environ.get("LUKV_NO_SMOLLM2"):
            pytest.fail(f"{FILE} is not there, and CI should have fetched it")
        pytest.skip(f"{FILE} is not there: `make smollm2` fetches it")
    return FILE
