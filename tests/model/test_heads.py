"""What is measured of heads, on attention whose pattern is known."""

import random

import numpy as np
import pytest
import torch

from lukv.budgets.table import BudgetTable
from lukv.model import load
from lukv.named import find_model_settings
from models.tiny.tokenizer import FOLDER
from scripts.studies.agreement import compare_shares, read_shares
from scripts.studies.fidelity import (
    captured_share,
    compare_rankings,
    describe_budgets,
    list_scorers,
    make_scorers,
    measure,
    spearman,
)
from scripts.studies.heads import find_value_tokens, local, look_back, share_on_repeat, sink


def pattern(length: int, looked_at) -> torch.Tensor:
    """[1, 1, T, T]: row i attends to looked_at(i) only."""
    weights = torch.zeros(1, 1, length, length)
    for row in range(length):
        weights[0, 0, row, looked_at(row)] = 1
    return weights


def test_a_head_that_looks_three_back():
    weights = pattern(100, lambda row: max(row - 3, 0))
    assert look_back(weights)[0, 0].tolist()[1:] == pytest.approx([1 / 98, 1, 0, 0, 0, 0, 0], abs=1e-6)
    assert local(weights).item() == 1
    assert sink(weights).item() == 0


def test_a_sink_head():
    weights = pattern(100, lambda row: 0)
    assert sink(weights).item() == 1
    assert local(weights).item() == 0


def test_induction_and_duplicate_heads_on_a_text_written_twice():
    n = 20  # BEGIN, n tokens, the same n tokens
    induction = pattern(2 * n + 1, lambda row: row - n + 1 if row > n else 0)
    duplicate = pattern(2 * n + 1, lambda row: row - n if row > n else 0)
    assert share_on_repeat(induction, 1).item() == 1
    assert share_on_repeat(induction, 0).item() == 0
    assert share_on_repeat(duplicate, 0).item() == 1
    assert share_on_repeat(duplicate, 1).item() == 0


def test_where_a_value_is_said_and_stands():
    assert find_value_tokens([5, 1, 2, 3, 9], [7, 1, 2, 3], [1, 2, 3]) == [(1, 1), (2, 2), (3, 3)]
    assert (
        find_value_tokens([1, 2, 3, 1, 2, 3], [1, 2, 3], [1, 2, 3]) == []
    )  # twice in the context: which one is meant?
    assert find_value_tokens([1, 2, 3], [4], [1, 2, 3]) == []


def test_captured_and_spearman_against_plain_loops():
    rng = random.Random(3)
    utility = [rng.random() for _ in range(50)]
    order = rng.sample(range(50), 50)
    best = sorted(utility, reverse=True)
    expected = sum(utility[i] for i in order[:10]) / sum(best[:10])
    tensors = torch.tensor(utility, dtype=torch.float64), torch.tensor(order)
    assert captured_share(*tensors, 0.2).item() == pytest.approx(expected, rel=1e-12)
    by_utility = [best.index(u) for u in utility]
    by_scorer = [order.index(i) for i in range(50)]
    squares = sum((a - b) ** 2 for a, b in zip(by_utility, by_scorer, strict=True))
    assert spearman(*tensors).item() == pytest.approx(1 - 6 * squares / (50 * (50**2 - 1)), rel=1e-9)


def test_perfect_and_reversed_orders():
    utility = torch.rand(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = utility.argsort(-1, descending=True)
    assert captured_share(utility, order, 0.2).tolist() == pytest.approx([1, 1, 1])
    assert spearman(utility, order).tolist() == pytest.approx([1, 1, 1])
    assert spearman(utility, order.flip(-1)).tolist() == pytest.approx([-1, -1, -1])


def test_budgets_are_described() -> None:
    """Four heads in two layers. All of their difference lies within the layers, and they fall as what is captured
    rises."""
    kept, captured = {"a": [[0.01, 0.6], [0.01, 0.6]]}, {"a": [[0.9, 0.1], [0.8, 0.2]]}
    found = describe_budgets(kept, captured)["a"]
    assert found == {
        "below 2%": 0.5,
        "above 50%": 0.5,
        "variance within layers": 1.0,
        "rank correlation with captured": pytest.approx(-0.894, abs=1e-3),  # (-4 / sqrt(4 * 5)), two ties
    }
    assert compare_rankings({**kept, "b": [[0.1, 0.2], [0.1, 0.2]]}) == {"a, b": 1.0}


@pytest.mark.slow  # four scorers and the extra passes of one
def test_fidelity_of_any_scorer_and_the_oracle_as_its_bound():
    loaded = load(FOLDER, dtype="float32")
    scorers = make_scorers(["keydiff", "utility_probe", "kvzip", "oracle"], loaded, find_model_settings(str(FOLDER)))
    found = measure(loaded, scorers, ["niah_single_1"], samples=1, sources=None)
    captured = {name: torch.tensor(heads) for name, heads in found["captured"].items()}
    assert found["facts"]["contexts"] == 1
    assert list(captured) == ["keydiff", "utility_probe", "kvzip", "oracle"]
    assert (captured["oracle"] == 1).all()
    assert all((heads <= 1).all() and heads.shape == captured["oracle"].shape for heads in captured.values())
    assert captured["keydiff"].mean() < captured["utility_probe"].mean() < 1
    assert {"keydiff", "oracle"} < set(list_scorers("atlas"))


def test_what_another_table_keeps_elsewhere():
    one, other, doubled = np.array([[0.1, 0.3]]), np.array([[0.2, 0.2]]), np.array([[0.2, 0.6]])
    shares = {"one": one, "other": other, "doubled": doubled}
    assert compare_shares(shares) == {"one, other": 0.25, "one, doubled": 0.0, "other, doubled": 0.25}


def test_tables_of_another_model_are_not_compared(tmp_path):
    for name, layers in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        kept = np.broadcast_to(np.linspace(0.99, 0.01, 99)[:, None, None], (99, layers, 2)).copy()
        BudgetTable(kept).save(tmp_path / name / "keydiff.safetensors")
    folders = {name: tmp_path / name for name in ("a", "b", "none")}
    with pytest.raises(ValueError, match="other layers and KV heads"):
        read_shares(folders, "keydiff")
    assert set(read_shares({"a": folders["a"], "none": folders["none"]}, "keydiff")) == {"a"}
