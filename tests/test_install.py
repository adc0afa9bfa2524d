"""A plain `pip install .` into another environment works in any folder, without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("lukv", "baselines", "evals", "conf", "models", "run.py", "report.py")
BUILD = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
LIBRARY = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.DOTALL)
SMALL = ["method=lukv", "budget=0.2", "limit=1", "benchmark.length=512", "benchmark.tasks=[niah_single_1]"]


def python(program: Path | str, folder: Path, *args: str) -> str:
    """What the program prints, run in the folder by a Python that sees nothing of the repository."""
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP", "VIRTUAL_ENV"))}
    command = [str(program), *args]
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which the wheel is installed; the dependencies are this environment's.

    The wheel is built from the source distribution, as one that is published would be.
    """
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"  # a build leaves files behind
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*BUILD, *SOURCES):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    python(sys.executable, folder, "-m", "build", "--no-isolation", "--outdir", "wheels", str(source))
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    program = folder / "venv" / "bin" / "python"
    own = python(program, folder, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = (folder / "wheels").glob("lukv-*.whl")
    pip = ["-m", "pip", "--disable-pip-version-check", "--no-input"]
    python(sys.executable, folder, *pip, "--python", str(program), "install", "--no-deps", "--no-index", str(wheel))
    return program


@pytest.mark.slow  # builds a wheel
def test_an_installed_package_evaluates_the_embedded_model(installed: Path, tmp_path: Path) -> None:
    where = "import lukv, evals, baselines; print(lukv.__file__, evals.__file__, baselines.__file__)"
    found = python(installed, tmp_path, "-c", where).split()
    assert all(Path(file).is_relative_to(installed.parents[1]) for file in found), found
    shown = python(installed, tmp_path, "-m", "evals.run", *SMALL)
    assert "niah_single_1" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    runs = sorted(path.parent.name for path in tmp_path.glob("runs/*/result.json"))
    assert [name.split("__")[1] for name in runs] == ["full", "lukv"]
    python(installed, tmp_path, "-m", "evals.report")
    assert (tmp_path / "runs" / "report" / "leaderboard.html").is_file()


@pytest.mark.slow
def test_its_help_and_its_sweeps_know_every_option(installed: Path, tmp_path: Path) -> None:
    shown = python(installed, tmp_path, "-m", "evals.run", "--help")
    options = [path.stem for path in ROOT.glob("conf/*/*.yaml") if path.parent.name != "hydra"]
    assert [name for name in options if name not in shown] == []


@pytest.mark.slow
def test_a_script_elsewhere_uses_the_library(installed: Path, tmp_path: Path) -> None:
    """The program of docs/library.md, in a folder of its own, on the embedded model that the wheel brings."""
    where = "from lukv.conf import ROOT; print(ROOT)"
    package = Path(python(installed, tmp_path, "-c", where).strip())
    assert package.is_relative_to(installed.parents[1])
    program = tmp_path / "program.py"
    program.write_text("\n".join(LIBRARY).replace("models/tiny", str(package / "models" / "tiny")), encoding="utf-8")
    assert "1480267" in python(installed, tmp_path, str(program))
    assert (package / "py.typed").is_file()
    assert (package / "backend" / "kernels" / "_native.cpp").is_file()
    assert python(installed, tmp_path, "-c", "import lukv; print(lukv.__version__)").strip() == declared_version()


def declared_version() -> str:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return version
