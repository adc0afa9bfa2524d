"""Bad budget tables through the command line, as in test_bad_input.py."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lukv.budgets.solver import solve
from lukv.budgets.table import BudgetTable
from tests.faults.conftest import Refuses

TABLE = "lukv budget table"


def table(folder: Path, model_hash: str = "", scorer: str = "keydiff") -> Path:
    """A sound table of the random model's shape: two layers of two KV heads."""
    utility = np.random.default_rng(0).random((2, 2, 195))
    solved = solve(utility, 200)
    about = {"config_hash": model_hash, "scorer": scorer, "scorer_parameters": {}, "sink": 4, "recent": 1}
    BudgetTable(solved.kept / 200, solved.loss, solved.lower_bound, None, about).save(folder / "table.safetensors")
    return folder / "table.safetensors"


def damaged(change: Callable[[np.ndarray], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        arrays = load_file(table(folder))
        change(arrays["kept"])
        save_file(arrays, folder / "table.safetensors", {"kind": TABLE, "json": "{}"})
        return folder / "table.safetensors"

    return make


def cut(share: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = table(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path

    return make


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def disguised(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"table{suffix}"
        if suffix == ".npy":
            np.save(path, np.array([Bomb(folder / "ran")], dtype=object), allow_pickle=True)
        else:
            path.write_bytes(pickle.dumps(Bomb(folder / "ran")))
        return path

    return make


def authors(shape: tuple[int, ...], value: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "table.npy", np.full(shape, value), allow_pickle=False)
        return folder / "table.npy"

    return make


TABLES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("missing", lambda folder: folder / "no.safetensors", "no budget table at "),
    ("a folder", lambda folder: folder, "has no table for scorer keydiff"),
    ("empty", cut(0), "is not a budget table"),
    ("cut in its header", cut(0.01), "is not a budget table"),
    ("cut in its numbers", cut(0.7), "is not a budget table"),
    ("one byte short", cut(0.9999), "is not a budget table"),
    ("NaN inside", damaged(lambda kept: kept.__setitem__((7, 1, 1), np.nan)), "kept has a NaN or an infinity"),
    ("infinity inside", damaged(lambda kept: kept.__setitem__((7, 1, 1), np.inf)), "kept has a NaN or an infinity"),
    ("share above 1", damaged(lambda kept: kept.__setitem__((7, 1, 1), 1.5)), "a share outside 0 .. 1"),
    ("all zero", damaged(lambda kept: kept.fill(0)), "do not add up to its global budgets"),
    ("upside down", damaged(lambda kept: kept.__setitem__(slice(None), kept[::-1].copy())), "do not add up"),
    (
        "of another model",
        lambda folder: table(folder, "0123456789ab"),
        "was made for config_hash 0123456789ab, not ",
    ),
    ("of another shape", authors((99, 3, 2), 0.5), "do not add up"),
    ("a pickle in a safetensors file", disguised(".safetensors"), "is not a budget table"),
    ("a pickle in an npy file", disguised(".npy"), "is not a budget table"),
    ("a text", lambda folder: Path(__file__), "is not a budget table"),
]


@pytest.mark.parametrize(("make", "says"), [t[1:] for t in TABLES], ids=[t[0] for t in TABLES])
def test_a_budget_table(
    make: Callable[[Path], Path], says: str, refuses: Refuses, short: list[str], tmp_path: Path
) -> None:
    line = refuses(2, says, *short, "method=lukv", f"allocator.path={make(tmp_path)}")
    assert not (tmp_path / "ran").exists(), "a pickle was loaded"
    if "made for" in says or "no budget" in says:
        assert "job=calibrate" in line


def test_a_table_of_another_scorer_or_shape(refuses: Refuses, short: list[str], tmp_path: Path, model: Path) -> None:
    from lukv.model import load

    path = table(tmp_path, load(model).config_hash, scorer="snapkv")
    line = refuses(2, "was made for scorer snapkv, not for keydiff", *short, "method=lukv", f"allocator.path={path}")
    assert f"job=calibrate model=hf model.name=random model.path={model} scorer=keydiff job.save=true" in line
    kept = np.linspace(0.99, 0.01, 99)[:, None, None] * np.ones((1, 3, 2))
    np.save(tmp_path / "large.npy", 1 - kept)
    says = "is for 3 layers of 2 KV heads, not for random, 2 layers of 2 KV heads"
    refuses(2, says, *short, "method=lukv", f"allocator.path={tmp_path}/large.npy")
