"""The list of faults fits the code, and a fault that no test sees is told from one that is caught."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutations.__main__ import CAUGHT, ROOT, SURVIVED, judge
from tests.mutations.faults import Fault, read_faults

FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.fault)
def test_the_list_fits_the_code(fault: Fault) -> None:
    """Without this the list would rot: what it is about is renamed, and it tests nothing."""
    content = (ROOT / fault.file).read_text(encoding="utf-8")
    wrong = fault.put_into(content)
    assert ast.dump(ast.parse(wrong)) != ast.dump(ast.parse(content))
    file, _, name = fault.test.partition("::")
    functions = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in [function.name for function in functions]


def test_each_fault_has_a_name_of_its_own() -> None:
    assert len({fault.fault for fault in FAULTS}) == len(FAULTS)


def test_caught_survived_and_not_tried(tmp_path: Path) -> None:
    (tmp_path / "numbers_.py").write_text("def double(x):\n    return 2 * x\n\n\nnever = 0\n")
    test = "from numbers_ import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
    (tmp_path / "test_numbers.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")

    def verdict(old: str, new: str) -> str:
        return judge(tmp_path, Fault("a fault", "numbers_.py", old, new, "test_numbers.py::test_double"))

    before = (tmp_path / "numbers_.py").read_text()
    assert verdict("2 * x", "3 * x") == CAUGHT
    assert verdict("never = 0", "never = 1") == SURVIVED
    assert "NOT TRIED (pytest ended with" in verdict("return", "retrun")
    assert verdict("x", "y") == "NOT TRIED ('x' occurs 2 times in numbers_.py, not once: mend faults.yaml)"
    assert (tmp_path / "numbers_.py").read_text() == before
