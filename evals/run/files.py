"""Reading and writing the files of a run folder: what is damaged is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from evals.run.old_names import translate_config
from lukv.artifacts import write_atomically
from lukv.conf import FAST


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged ({e}): remove {path.parent} and run again") from e


def read_settings(path: Path) -> dict[str, Any]:
    """A run folder's config.yaml. What an older version wrote is translated."""
    try:
        settings = yaml.load(path.read_bytes(), FAST)  # noqa: S506 - a safe loader
    except yaml.YAMLError as e:
        raise ValueError(f"{path} is damaged ({' '.join(str(e).split())}): remove {path.parent} and run again") from e
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is damaged (it has no settings): remove {path.parent} and run again")
    return translate_config(settings)


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    write_atomically(path, text.encode())
