"""A fault that is put into the code on purpose, and the list of them: faults.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

LIST = Path(__file__).with_name("faults.yaml")


@dataclass(frozen=True)
class Fault:
    """In `file`, the text `old` becomes `new`. Then `test` (tests/FILE.py::FUNCTION) must fail."""

    fault: str
    file: str
    old: str
    new: str
    test: str

    def put_into(self, content: str) -> str:
        """The file's content with the fault in it. Raises ValueError unless `old` occurs in it exactly once."""
        times = content.count(self.old)
        if times != 1:
            raise ValueError(f"{self.old!r} occurs {times} times in {self.file}, not once: mend {LIST.name}")
        return content.replace(self.old, self.new)


def read_faults() -> list[Fault]:
    return [Fault(**fault) for fault in yaml.safe_load(LIST.read_text(encoding="utf-8"))]
