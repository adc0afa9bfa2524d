"""A method looks the same in every figure, on a colour screen and on a grey print; names of lines cover no other."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from evals.looks import find_look, find_scorer
from evals.plots import plt
from evals.score_plots import TOGETHER, draw_scores, scale, split_panels, spread
from lukv.conf import GROUPS

FAMILIES = [m for m in GROUPS["method"] if m != "full"]


def rows(level: float, budgets: tuple[float, ...] = (0.1, 0.2)) -> list[dict[str, object]]:
    return [{"kept_share": b, "score": level, "ci95": [level, level], "cache_bytes": b * 2**20} for b in budgets]


def lightness(colour: str) -> float:
    """CIE L* (0 to 100): what is left of a colour on a grey print."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot((0.2126, 0.7152, 0.0722), linear))
    return 116 * y ** (1 / 3) - 16


@pytest.mark.parametrize("scorer", ["keydiff", "snapkv", "expected_attention"])
def test_methods_of_one_scorer_are_told_apart_without_colour(scorer: str) -> None:
    """What stands in one panel differs in its marker, in its dashes or in how dark it is."""
    labels = [scorer, f"lukv-{scorer}", f"lukv-{scorer}-lu_curve", f"adakv-{scorer}", f"pyramidkv-{scorer}"]
    for one, other in combinations(map(find_look, labels), 2):
        apart = abs(lightness(one.colour) - lightness(other.colour)) > 10
        assert apart or one.marker != other.marker or one.dashes != other.dashes


def test_every_shipped_method_is_seen_on_white_paper() -> None:
    assert all(lightness(find_look(method).colour) < 75 for method in FAMILIES)


def test_a_family_shares_its_colour_and_a_scorer_its_marker() -> None:
    assert find_look("lukv-keydiff").colour == find_look("lukv-snapkv-lu_curve").colour
    assert find_look("lukv-snapkv").marker == find_look("snapkv-snapkv").marker == find_look("adakv").marker
    assert find_look("keydiff") == find_look("keydiff-keydiff")
    assert find_look("keydiff").hollow is False
    assert find_look("keydiff scorer.window=16").hollow is True


@settings(max_examples=20)
@given(st.text("abcdefgh_", min_size=1, max_size=12))
def test_a_new_method_has_a_look_without_a_line_anywhere(name: str) -> None:
    look = find_look(name)
    assert look == find_look(name)
    to_rgb(look.colour)
    assert find_scorer(name) not in GROUPS["scorer"] or name in GROUPS["method"]


@given(st.lists(st.floats(0, 100), max_size=12).map(sorted), st.floats(0.1, 20))
def test_names_keep_their_order_and_their_distance(heights: list[float], step: float) -> None:
    found = spread(heights, step)
    assert len(found) == len(heights)
    assert np.all(np.diff(found) >= step * (1 - 1e-6) - 1e-9)
    assert sum(found) == pytest.approx(sum(heights), abs=1e-6)
    if all(b - a >= step for a, b in pairwise(heights)):
        assert found == pytest.approx(heights)


def test_up_to_eight_lines_are_one_panel_and_more_have_one_for_each_scorer() -> None:
    few = {f"lukv-keydiff x={i}": rows(i / 10) for i in range(TOGETHER)}
    assert [*split_panels(few, {}).values()] == [sorted(few, reverse=True)]
    many = {f"{m}-{s}": rows(0.1) for s in ("keydiff", "snapkv") for m in ("lukv", "adakv", "pyramidkv", "lukv_plus")}
    panels = split_panels({**many, "random-random": rows(0.0)}, {"keydiff": "KeyDiff"})
    assert {name: len(labels) for name, labels in panels.items()} == {"KeyDiff": 4, "SnapKV": 4, "other scorers": 1}
    crowded = split_panels({f"keydiff x={i}": rows(0.1) for i in range(20)}, {})
    assert [len(labels) for labels in crowded.values()] == [8, 8, 4]


@pytest.mark.parametrize(("budgets", "axis"), [((0.1, 0.2), "linear"), ((0.02, 0.1, 0.5), "log")])
def test_the_axis_is_logarithmic_where_budgets_span_a_decade(budgets: tuple[float, ...], axis: str) -> None:
    figure, grid = plt.subplots(1, 1, squeeze=False)
    scale("kept_share", {"lukv": rows(0.5, budgets)}, grid)
    assert grid[0, 0].get_xscale() == axis
    assert [round(tick) for tick in grid[0, 0].get_xticks()] == [100 * b for b in budgets]
    plt.close(figure)


def test_one_budget_is_one_place() -> None:
    """Methods meet a budget to an entry or two. Drawn from 20.00 to 20.01%, they would seem far apart."""
    figure, grid = plt.subplots(1, 1, squeeze=False)
    scale("kept_share", {"lukv": rows(0.5, (0.2,)), "keydiff": rows(0.4, (0.2001,))}, grid)
    left, right = grid[0, 0].get_xlim()
    assert 0.01 * (right - left) > 100 * (0.2001 - 0.2)
    plt.close(figure)


def test_the_same_figure_is_the_same_file_in_three_formats(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        draw_scores("kept_share", {"lukv": rows(0.5)}, None, "title", tmp_path / folder / "x.png")
    for ending in ("png", "svg", "pdf"):
        one, other = (tmp_path / folder / f"x.{ending}" for folder in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    assert b"/Type3" not in (tmp_path / "a" / "x.pdf").read_bytes()


def test_the_full_cache_is_inside_the_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is far above every line."""
    drawn: list[Figure] = []
    monkeypatch.setattr("evals.score_plots.save", lambda figure, *_: drawn.append(figure))
    full = {"kept_share": 1.0, "score": 0.96, "ci95": [0.92, 0.98]}
    draw_scores("kept_share", {"lukv": rows(0.5)}, full, "title", tmp_path / "x.png")
    [axes] = drawn[0].axes
    low, high = axes.get_ylim()
    assert low == 0
    assert high >= 98
    plt.close(drawn[0])
