"""Which room of the house may import which: no import runs upward, and there is no circle."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lukv", "baselines", "evals", "models", "scripts")
ENTRANCES = {"evals.run.cli": "evals.jobs", "lukv": "evals.library"}
"""The two imports that run upward. The command line imports the job it was asked for, inside a function; and the
library's front door names `lukv.evaluate`, which is imported when it is asked for."""


def full_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {full_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def imports(module: str) -> set[str]:
    """The modules that a module imports, also inside functions, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports with full names"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if not within(name, ENTRANCES.get(module, "none"))}


GRAPH = {module: imports(module) for module in MODULES}

RULES = [  # modules in these packages, but not in those, import nothing of these packages, except those
    (("lukv",), (), ("evals", "baselines"), ()),
    (PACKAGES, (), ("lukv.bridges",), ()),  # they need what is not installed with us
    (("baselines",), (), ("lukv", "evals"), ("lukv.scoring", "lukv.allocation", "lukv.ops")),
    (("evals",), (), ("baselines",), ()),
    (
        PACKAGES,
        (
            "lukv.model",
            "lukv.checkpoint",
            "lukv.gguf",
            "lukv.pipeline",
            "lukv.backend",
            "lukv.bridges",
            "models",
            "scripts.architectures",
        ),
        ("transformers",),
        (),
    ),
    (("evals.run",), (), ("evals.jobs", "evals.report"), ()),
    (("evals.jobs",), (), ("evals.report",), ()),
    (("evals.report",), (), ("evals.run", "evals.jobs"), ("evals.run.folder", "evals.run.files")),
]


@pytest.mark.parametrize(("importers", "others", "forbidden", "allowed"), RULES)
def test_no_import_runs_upward(
    importers: tuple[str, ...], others: tuple[str, ...], forbidden: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    modules = [module for module in GRAPH if within(module, *importers) and not within(module, *others)]
    assert modules
    edges = [(module, name) for module in modules for name in sorted(GRAPH[module])]
    wrong = [edge for edge in edges if within(edge[1], *forbidden) and not within(edge[1], *allowed)]
    assert wrong == []


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter({module: GRAPH[module] & GRAPH.keys() for module in GRAPH}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_backends_tests_need_lukv_and_baselines_only() -> None:
    """They run under other versions of transformers too, in environments that lack what evals needs."""
    for path in (ROOT / "tests/backend").rglob("*.py"):
        assert "evals" not in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
