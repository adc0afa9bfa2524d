"""A program's section of docs/benchmarks.md: printed while it is measured, put in its place when asked.

A program is a module of this folder whose name has no underscore in front. It ends with

    if __name__ == "__main__":
        run("What it measures", measure)

and `measure(section)` prints through the section. `python -m benchmarks.NAME [--full] [--record]` runs one of them,
`python -m benchmarks` all. What stands outside the markers in docs/benchmarks.md is written by hand and stays.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from evals.run.provenance import find_version, name_processor

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
END = "<!-- new sections go above this line -->"


class Skip(Exception):
    """Raised by a program that cannot run here; the message says why. Its section stays as it was."""


class Section:
    """`full`: take the time for the large cases too. Lines are printed as they come."""

    def __init__(self, name: str, title: str, options: argparse.Namespace) -> None:
        self.name, self.title, self.options = name, title, options
        self.full: bool = options.full
        self.lines: list[str] = []

    def text(self, paragraph: str) -> None:
        """A paragraph of its own; line breaks in it do not matter."""
        self._print("", " ".join(paragraph.split()), "")

    def head(self, *columns: str) -> None:
        """Begin a table: the first column is text, the others are numbers."""
        self._print("| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|")

    def row(self, *cells: object) -> None:
        self._print("| " + " | ".join(map(str, cells)) + " |")

    def _print(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)

    def markdown(self, facts: str) -> str:
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(self.lines)).strip("\n")
        return f"{begin(self.name)}\n## {self.title}\n\n{facts}\n\n{body}\n{end(self.name)}"


def begin(name: str) -> str:
    return f"<!-- {name}: written by `python -m benchmarks.{name} --record` -->"


def end(name: str) -> str:
    return f"<!-- end of {name} -->"


def replace_section(page: str, name: str, section: str) -> str:
    """The page with the section of that name in the place of the old one, or as the last one. Raises ValueError for a
    page whose markers are damaged."""
    first, last = page.find(begin(name)), page.find(end(name))
    if first < 0 and last < 0:
        if page.count(END) != 1:
            raise ValueError(f"the page must have this line once: {END}")
        return page.replace(END, f"{section}\n\n{END}")
    if not 0 <= first < last:
        raise ValueError(f"one of the two markers of section {name} is missing or misplaced")
    return page[:first] + section + page[last + len(end(name)) :]


def facts(name: str, arguments: list[str]) -> str:
    """Command, date, machine, versions and commit, in one line."""
    command = " ".join(["python -m benchmarks." + name, *(a for a in arguments if a != "--record")])
    versions = ", ".join(f"{p} {v}" for p in ("torch", "transformers", "numpy") if (v := find_version(p)))
    return (
        f"`{command}`, {datetime.date.today()}: {machine()}; Python {platform.python_version()}, {versions}; {commit()}"
    )


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = ""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpu = f"; {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"{name_processor()}, {os.cpu_count()} CPUs, {memory:.0f} GiB{gpu}"


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--short=10", "HEAD")
    changed = git("status", "--porcelain", "--", "lukv", "baselines", "evals", "models", "benchmarks")
    return f"commit {head}{' with changes' if changed else ''}" if head else "no git"


def run(
    title: str,
    measure: Callable[[Section], None],
    add_options: Callable[[argparse.ArgumentParser], object] | None = None,
    page: Path = PAGE,
) -> None:
    """The program's command line. `add_options(parser)` adds options of its own, found in section.options."""
    main = sys.modules["__main__"]
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the large cases too, and more rounds")
    parser.add_argument("--record", action="store_true", help=f"write the section into {page.relative_to(ROOT)}")
    if add_options is not None:
        add_options(parser)
    section = Section(Path(str(main.__file__)).stem, title, parser.parse_args())
    try:
        measure(section)
    except Skip as why:
        print(f"{section.name}: not run, {why}")
        return
    if section.options.record:
        text = section.markdown(facts(section.name, sys.argv[1:]))
        page.write_text(replace_section(page.read_text(), section.name, text))
        print(f"\n-> {page.relative_to(ROOT)}")
