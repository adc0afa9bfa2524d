"""What a wheel holds beside the three packages: conf/ and the embedded model in lukv/, run.py and report.py in evals/.

In the repository they stay at the top, where people look for them; an editable install finds them there. Everything
else about the package is in pyproject.toml.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("conf/**/*.yaml", "models/tiny/*.json", "models/tiny/*.safetensors", "models/*/tables/*.safetensors")
PROGRAMS = {"run.py": "evals/run/__main__.py", "report.py": "evals/report/__main__.py"}
"""Installed, they are `python -m evals.run` and `python -m evals.report`."""


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        files = {str(path): f"lukv/{path}" for pattern in SHIPPED for path in Path().glob(pattern)}
        for source, target in (files | PROGRAMS).items():
            copy = Path(self.build_lib, target)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, copy)


setup(cmdclass={"build_py": BuildWithData})
