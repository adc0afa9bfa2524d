"""docs/library.md does what it says: its blocks run from top to bottom and print what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.as_typed import ROOT

TEXT = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
PROGRAM = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
SHOWN = re.findall(r"```text\n(.*?)```", TEXT, re.S)


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(PROGRAM, "library.md", "exec"), {})
    said = capsys.readouterr().out
    assert SHOWN
    for text in SHOWN:
        assert text in said
