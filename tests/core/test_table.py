"""BudgetTable: file, interpolation, refusal; and the allocator's exact global totals."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lukv.allocation import Budget, HeadScores
from lukv.artifacts import describe
from lukv.budgets.controls import LayerMean
from lukv.budgets.curve import CurveAllocator
from lukv.budgets.solver import solve
from lukv.budgets.table import BudgetTable, TableAllocator
from lukv.scoring import Scorer
from lukv.selection import Protection
from tests.reference.plain_solver import hull_vertices, loss_curve

LAYERS, HEADS = 3, 2


@dataclass(frozen=True)
class Windowed(Scorer):
    window: int = 32


@dataclass
class Model:
    name: str = "tiny"
    config_hash: str = "abc"
    weights_hash: str = "123"
    layers: int = LAYERS
    kv_heads: int = HEADS


SCORER = Windowed(name="windowed", sink=4, recent=32)
PROTECTION = Protection()


def made_table(seed=0, tokens=200):
    utility = np.random.default_rng(seed).lognormal(0, 3, size=(LAYERS, HEADS, tokens - 5))
    solution = solve(utility / np.arange(1, tokens - 4), tokens)
    metadata = {"model": "tiny", "note": "größe", **describe(Model(), SCORER, PROTECTION)}
    curve = np.random.default_rng(seed).random((LAYERS, HEADS, 50), dtype=np.float32)
    return BudgetTable(solution.kept / tokens, solution.loss, solution.lower_bound, curve, metadata)


def scores(layer, tokens, layers=LAYERS, heads=HEADS):
    return HeadScores(torch.zeros(heads, tokens), torch.zeros(tokens, dtype=torch.bool), layer, layers)


def allocator(tmp_path, table=None):
    (table or made_table()).save(tmp_path / "windowed.safetensors")
    return TableAllocator(tmp_path / "windowed.safetensors")


def test_a_saved_table_comes_back_unchanged(tmp_path):
    table = made_table()
    table.save(tmp_path / "new" / "t.safetensors")
    again = BudgetTable.load(tmp_path / "new" / "t.safetensors")
    for name in ("kept", "expected_loss", "lower_bound", "curve"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert again.metadata == table.metadata
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.safetensors"]


def test_npy_holds_pruned_shares_on_the_authors_grid(tmp_path):
    table = made_table()
    table.save_npy(tmp_path / "t.npy")
    pruned = np.load(tmp_path / "t.npy", allow_pickle=False)
    assert pruned.shape == (99, LAYERS, HEADS)
    np.testing.assert_allclose(pruned.mean((1, 2)), np.arange(1, 100) / 100, atol=0.03)
    again = BudgetTable.load(tmp_path / "t.npy")
    np.testing.assert_allclose(again.kept, table.kept, atol=1e-15)
    assert again.metadata == {}
    np.save(tmp_path / "half.npy", pruned.astype(np.float32))
    np.testing.assert_allclose(BudgetTable.load(tmp_path / "half.npy").kept, table.kept, atol=1e-7)


@pytest.mark.parametrize("percent", range(1, 100))
def test_each_grid_point_is_exact(percent):
    table = made_table()
    np.testing.assert_array_equal(table.shares(percent / 100), table.kept[99 - percent])


def test_between_grid_points_it_is_linear():
    table = made_table()
    np.testing.assert_allclose(table.shares(0.2025), 0.75 * table.kept[79] + 0.25 * table.kept[78])
    np.testing.assert_allclose(table.shares(Fraction(1, 3)), (2 * table.kept[66] + table.kept[65]) / 3)
    np.testing.assert_allclose(table.shares(0.995), 0.5 + 0.5 * table.kept[0])
    np.testing.assert_allclose(table.shares(0.004), 0.4 * table.kept[98])
    np.testing.assert_array_equal(table.shares(1), np.ones((LAYERS, HEADS)))
    for wrong in (0, 1.01, -0.5):
        with pytest.raises(ValueError, match="not a share"):
            table.shares(wrong)


@given(st.integers(1, 400), st.integers(1, 999) | st.just(1000))
@settings(max_examples=200, deadline=None)
def test_the_global_total_is_exact_at_every_length(shared_allocator, tokens, permille):
    budget = Budget(share=permille / 1000)
    counts = torch.stack([shared_allocator.counts(budget, scores(layer, tokens)) for layer in range(LAYERS)])
    total = (Fraction(permille, 1000) * LAYERS * HEADS * tokens + Fraction(1, 2)).__floor__()
    assert counts.dtype == torch.int64
    assert int(counts.sum()) == total
    assert int(counts.min()) >= (total >= LAYERS * HEADS)
    assert int(counts.max()) <= tokens


@pytest.fixture(scope="module")
def shared_allocator(tmp_path_factory):
    return allocator(tmp_path_factory.mktemp("table"))


def test_at_its_own_length_a_single_solution_is_followed_exactly(tmp_path):
    table = made_table(tokens=200)
    ours = allocator(tmp_path, table)
    for percent in range(5, 100, 7):
        kept = np.rint(table.kept[99 - percent] * 200)
        np.testing.assert_array_equal(ours.counts_at(Budget(share=percent / 100), 200), kept)


def test_loss_curves_and_hulls_for_figures():
    table = made_table()
    discarded, loss, corners = table.loss_curve(1, 0)
    np.testing.assert_allclose(discarded, np.linspace(0, 1, 51))
    np.testing.assert_allclose(loss, loss_curve(table.curve[1, 0].astype(float), 50))
    assert corners.tolist() == hull_vertices(loss_curve([Fraction(float(x)) for x in table.curve[1, 0]], 50))
    assert (np.interp(discarded, discarded[corners], loss[corners]) <= loss + 1e-12).all()
    table.curve[1, 0, :7] = 0  # protected ranks
    assert table.loss_curve(1, 0)[2][-1] == 43
    with pytest.raises(ValueError, match="no loss curves"):
        replace(table, curve=None).loss_curve(0, 0)


def test_a_budget_in_tokens_is_the_same_budget(tmp_path):
    ours = allocator(tmp_path)
    np.testing.assert_array_equal(ours.counts_at(Budget(tokens=50), 250), ours.counts_at(Budget(share=0.2), 250))


def test_it_accepts_what_it_was_made_for_and_nothing_else(tmp_path):
    ours = allocator(tmp_path)
    ours.check(Model(), SCORER, PROTECTION)
    ours.check(Model(), SCORER, Protection(2, 32))  # the scorer's own protection covers it
    refused = [
        ((Model(config_hash="def"), SCORER, PROTECTION), "config_hash abc, not for def"),
        ((Model(weights_hash="456"), SCORER, PROTECTION), "weights_hash 123, not for 456"),
        (
            (Model(kv_heads=HEADS + 1), SCORER, PROTECTION),
            "3 layers of 2 KV heads, not for tiny, 3 layers of 3 KV",
        ),
        ((Model(), replace(SCORER, name="other"), PROTECTION), "scorer windowed, not for other"),
        ((Model(), replace(SCORER, window=64), PROTECTION), "scorer_parameters"),
        ((Model(), SCORER, Protection(8, 0)), "sink 4, not for 8"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message) as error:
            ours.check(*arguments)
        assert f"python run.py job=calibrate model=tiny scorer={arguments[1].name}" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="not for 3 layers of 4 KV heads"):
        ours.counts(Budget(share=0.5), scores(0, 10, heads=4))


@pytest.mark.parametrize("kind", [TableAllocator, CurveAllocator, LayerMean])
def test_a_table_of_other_weights_is_taken_on_request_only(tmp_path, kind):
    made = made_table()
    heads = np.repeat(np.arange(LAYERS * HEADS), 2)
    knots = np.stack([heads, np.tile([0, 5], LAYERS * HEADS), np.ones(len(heads))], axis=1)
    replace(made, knots=knots).save(tmp_path / "a.safetensors")
    other = Model(weights_hash="456")
    with pytest.raises(ValueError, match=r"with allocator\.any_weights=true"):
        kind(tmp_path / "a.safetensors").check(other, SCORER, PROTECTION)
    ours = kind(tmp_path / "a.safetensors", any_weights=True)
    ours.check(other, SCORER, PROTECTION)
    with pytest.raises(ValueError, match="config_hash abc, not for def"):
        ours.check(replace(other, config_hash="def"), SCORER, PROTECTION)
    with pytest.raises(ValueError, match="scorer_parameters"):
        ours.check(other, replace(SCORER, window=64), PROTECTION)


def test_a_table_without_metadata_is_checked_for_its_shape_only(tmp_path):
    made_table().save_npy(tmp_path / "authors.npy")
    ours = TableAllocator(tmp_path / "authors.npy")
    ours.check(Model("llama", "whatever"), SCORER, PROTECTION)
    with pytest.raises(ValueError, match="KV heads"):
        ours.check(Model(layers=LAYERS + 1), SCORER, PROTECTION)
    assert "3 layers of 2 KV heads" in ours.caveat
    assert "\n" not in ours.caveat
    assert allocator(tmp_path).caveat is None  # ours says what it is for


AUTHORS = ("ea_0.02_sink4_win1_llama_avg_ratio", "keydiff_avg_ratio", "snapkv_maxpool_sink4_win_32_llama_avg_ratio")


def test_a_folder_has_one_table_a_scorer(tmp_path):
    """Named as in the authors' release."""
    scorers = ("expected_attention", "keydiff", "snapkv")
    for seed, name in enumerate(AUTHORS):
        made_table(seed).save_npy(tmp_path / f"{name}.npy")
    for seed, scorer in enumerate(scorers):
        ours = TableAllocator(tmp_path, scorer=scorer)
        np.testing.assert_allclose(ours.table.kept, made_table(seed).kept, atol=1e-12)
        assert ours.path == tmp_path / f"{AUTHORS[seed]}.npy"
        ours.check(Model(), SCORER, PROTECTION)
    with pytest.raises(FileNotFoundError, match=r"has no table for scorer streaming \(\.npy files: ea_.*name one file"):
        TableAllocator(tmp_path, scorer="streaming")
    made_table().save_npy(tmp_path / "keydiff_other.npy")
    with pytest.raises(FileNotFoundError, match="has 2 tables for scorer keydiff"):
        TableAllocator(tmp_path, scorer="keydiff")
    made_table(7).save(tmp_path / "keydiff.safetensors")  # with metadata: goes before the others
    np.testing.assert_array_equal(TableAllocator(tmp_path, scorer="keydiff").table.kept, made_table(7).kept)


@pytest.mark.parametrize(
    ("folder", "model"), [("tiny/tables", "tiny"), ("tables/hf-model", "hf-model"), ("elsewhere", "MODEL")]
)
def test_a_missing_table_names_the_command_that_makes_it(tmp_path, folder, model):
    with pytest.raises(FileNotFoundError, match=rf"job=calibrate model={model} scorer=snapkv") as error:
        TableAllocator(tmp_path / folder / "snapkv.safetensors")
    assert "\n" not in str(error.value)


def spoiled(kept, change):
    kept = kept.copy()
    change(kept)
    return kept


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"kept": np.full((98, 2, 2), 0.5)}, "shape"),
        ({"kept": np.full((99, 2), 0.5)}, "shape"),
        ({"kept": np.full((99, 0, 2), 0.5)}, "shape"),
        ({"kept": np.full((99, 2, 2), 0.5)}, "do not add up"),
        ({"kept": 1 - made_table().kept}, "do not add up"),
        ({"kept": made_table().kept[::-1].copy()}, "do not add up"),
        ({"kept": spoiled(made_table().kept, lambda a: a.__setitem__((5, 0, 0), np.nan))}, "NaN"),
        ({"kept": spoiled(made_table().kept, lambda a: a.__setitem__((5, 0, 0), 1.5))}, r"outside 0 \.\. 1"),
        ({"kept": made_table().kept, "expected_loss": np.ones(98)}, "expected_loss has shape"),
        ({"kept": made_table().kept, "lower_bound": np.full(99, np.inf)}, "lower_bound has a NaN or an infinity"),
        ({"kept": made_table().kept, "curve": np.ones((9, 2, 5))}, "curve has shape"),
        ({"kept": made_table().kept, "spare": np.ones(3)}, "spare"),
        ({"other": np.ones(3)}, "other"),
    ],
)
def test_an_unsound_table_is_refused(tmp_path, arrays, message):
    save_file(arrays, tmp_path / "t.safetensors", {"kind": "lukv budget table", "json": "{}"})
    with pytest.raises(ValueError, match=message) as error:
        BudgetTable.load(tmp_path / "t.safetensors")
    assert "t.safetensors is not a budget table" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_something_else_are_refused(tmp_path):
    made_table().save(tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    made_table().save_npy(tmp_path / "whole.npy")
    array = (tmp_path / "whole.npy").read_bytes()
    save_file({"kept": made_table().kept}, tmp_path / "anonymous.safetensors")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "integers.npy", np.ones((99, 2, 2), dtype=int))
    files = {
        "empty.safetensors": b"", "text.safetensors": b"hello", "empty.npy": b"", "text.npy": b"hello",
        "half.safetensors": whole[: len(whole) // 2], "short.safetensors": whole[:-1],
        "half.npy": array[: len(array) // 2],
        "pickle.npy": pickle.dumps([1, 2]), "pickle.safetensors": pickle.dumps([1, 2]),
        "broken.safetensors": whole.replace(json.dumps('{"config')[1:-1].encode(), b'[' * 10),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "anonymous.safetensors", "objects.npy", "integers.npy"]:
        with pytest.raises(ValueError, match="is not a budget table") as error:
            BudgetTable.load(tmp_path / name)
        assert "\n" not in str(error.value), name


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    made_table(0).save(tmp_path / "t.safetensors")
    before = (tmp_path / "t.safetensors").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        made_table(1).save(tmp_path / "t.safetensors")
    assert (tmp_path / "t.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
