"""Run the notebooks and store what they print and draw, so that a repository browser shows it.

    python -m scripts.notebooks            # what `make notebooks` runs

Paths of this machine are cut out of what is stored. tests/notebooks says how large it may be.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PROGRESS = re.compile(r"\r?\x1b\[K[^\n\r]*")
PLACES = re.compile("|".join([re.escape(tempfile.gettempdir()) + r"/\w+", re.escape(str(ROOT))]))


def run(path: Path) -> Any:
    """The notebook as it is after a run from top to bottom, in its own folder."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=240, resources=resources, record_timing=False).execute()
    return notebook


def clean(notebook: Any) -> Any:
    """Without this machine: its paths, its libraries' warnings, and the Python that the kernel happened to be."""
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = PLACES.sub("runs", PROGRESS.sub("", output["text"]))
    return notebook


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(clean(run(path)), path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
