"""The leaderboard page, as a user sees it: in headless Chromium, from a file, without network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evals.report.page import write_page
from tests.report.finished_runs import evaluate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: scripts/install_system.sh browser")

ATTACK = "<script>document.title='attacked'</script><img src=x onerror=\"document.title='attacked'\">'\"&amp;"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)
METHODS = ("lukv", "snapkv", "pyramidkv", "streaming")
RULER = ("benchmark=ruler", "benchmark.length=1024")


def row(score: float, *overrides: str, method: str | None = None) -> Any:
    """The result of a run whose tasks score around `score` (0..1), with what a page may show beside it."""
    scores = {
        task: [max(score - 0.09 * i, 0)] * 20 for i, task in enumerate(("niah_single_1", "niah_multikey_1", "vt"))
    }
    result, _ = evaluate(scores, "limit=null", *overrides, method=method)
    samples = [
        {"task": "vt", "prediction": f" ABCDE {ATTACK}", "references": ["ABCDE", "FGHIJ"], "score": 0.5},
        {"task": "vt", "error": "out of memory"},
    ]
    return {**result, "command": f"python run.py {' '.join(overrides)}", "samples": samples}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows = [row(0.942, *RULER, "method=full")]
    for i, name in enumerate(METHODS):
        for budget in (0.1, 0.2, 0.5):
            rows.append(row(0.85 - 0.13 * i + 0.25 * (budget - 0.2), *RULER, f"method={name}", f"budget={budget}"))
    rows.append(row(0.61, "benchmark=longbench", "method=full"))
    rows.append(row(0.4, "benchmark=longbench", "method=lukv", "allocator=budget_table_shuffled", method=ATTACK))
    picture = tmp_path / "figure.png"
    picture.write_bytes(PNG)
    write_page(rows, {f"Score against budget {ATTACK}": picture}, tmp_path / "leaderboard.html")
    return tmp_path / "leaderboard.html"


def chromium(page: Path, *options: str, fragment: str = "") -> str:
    """Run Chromium on the page; its standard output."""
    fixed = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-dev-shm-usage"
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [str(CHROMIUM), *fixed.split(), profile, "--virtual-time-budget=2000", *options, page.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def after(page: Path, actions: str, fragment: str = "") -> Any:
    """What the JavaScript `actions` return once they have run in the loaded page, as a user's clicks would."""
    html = page.read_text()
    copy = page.with_name("acting.html")
    # A copy without the security policy, which would (rightly) not run the script that plays the user.
    html = re.sub(r"<meta http-equiv=[^>]*>", "", html)
    play = f"<script>document.documentElement.dataset.out = JSON.stringify((() => {{{actions}}})())</script>"
    copy.write_text(html.replace("</body>", f"{play}</body>"))
    found = re.search(r'data-out="([^"]*)"', chromium(copy, "--dump-dom", fragment=fragment))
    assert found, "the script did not finish"
    return json.loads(unescape(found[1]))


FIRST_TABLE = """
const section = [...document.querySelectorAll("section")].find(s => s.textContent.includes("ruler-1024"));
const table = section.querySelector("table");
const column = name => [...table.tHead.rows[0].cells].findIndex(c => c.textContent === name);
const values = name => [...table.tBodies].map(b => b.rows[0].cells[column(name)].dataset.value);
const click = name => table.tHead.rows[0].cells[column(name)].querySelector("button").click();
const visible = () => [...document.querySelectorAll("tbody[data-method]")].filter(b => !b.hidden)
  .map(b => b.dataset.method + " " + b.dataset.budget);
const choose = (name, value) => { const field = document.forms[0].elements[name]; field.value = value;
  field.dispatchEvent(new Event("input", {bubbles: true})); };
"""


@browser
def test_click_sorts_by_number_and_by_word(page: Path) -> None:
    out = after(
        page,
        FIRST_TABLE
        + """
        click("Per token"); const down = values("Per token").map(Number);
        click("Per token"); const up = values("Per token").map(Number);
        click("Method"); const words = values("Method");
        return {down, up, words, sorted: table.querySelectorAll("[aria-sort]").length};""",
    )
    assert len(out["down"]) == 13
    assert out["down"] == sorted(out["down"], reverse=True)
    assert out["up"] == sorted(out["up"])
    assert out["words"] == sorted(out["words"])
    assert out["sorted"] == 1


@browser
def test_filters_combine_and_are_taken_back(page: Path) -> None:
    out = after(
        page,
        FIRST_TABLE
        + """
        const all = visible().length;
        choose("method", "snapkv"); const method = visible();
        choose("budget", "20%"); const both = visible();
        const note = document.getElementById("shown").textContent;
        const sections = [...document.querySelectorAll("section:has(table)")].filter(s => !s.hidden).length;
        choose("method", ""); choose("budget", ""); choose("text", "PYRAMID"); const text = visible();
        return {all, method, both, note, sections, text, address: location.hash};""",
    )
    assert out["all"] == 15
    assert sorted(out["method"]) == ["snapkv 10%", "snapkv 20%", "snapkv 50%"]
    assert out["both"] == ["snapkv 20%"]
    assert out["note"] == "1 of 15 runs"
    assert out["sections"] == 1
    assert sorted(out["text"]) == ["pyramidkv 10%", "pyramidkv 20%", "pyramidkv 50%"]
    assert out["address"] == "#text=PYRAMID"


@browser
def test_an_address_opens_a_view(page: Path) -> None:
    out = after(page, FIRST_TABLE + "return visible();", fragment="#method=lukv&budget=10%25")
    assert out == ["lukv 10%"]


@browser
def test_a_row_opens_and_its_prediction_is_text(page: Path) -> None:
    out = after(
        page,
        """
        const button = document.querySelector("button.open"); button.click();
        const details = button.closest("tbody").querySelector(".details");
        const cell = details.querySelector(".samples td:nth-child(2)");
        return {open: !details.hidden, text: cell.textContent, elements: cell.children.length};""",
    )
    assert out == {"open": True, "text": f" ABCDE {ATTACK}", "elements": 0}


@browser
def test_nothing_that_a_run_wrote_is_executed(page: Path) -> None:
    assert "<title>LU-KV leaderboard</title>" in chromium(page, "--dump-dom")


@browser
def test_the_policy_stops_a_script_that_was_not_escaped(page: Path) -> None:
    """The second line of defence: the page's own script runs, one that somehow came in does not."""
    page.write_text(page.read_text().replace("</main>", "<script>document.title='attacked'</script></main>"))
    dom = chromium(page, "--dump-dom")
    assert "<title>LU-KV leaderboard</title>" in dom
    assert "15 of 15 runs" in dom


@browser
def test_screenshot(page: Path) -> None:
    shot = page.with_name("leaderboard.png")
    chromium(page, f"--screenshot={shot}", "--window-size=1400,1000")
    from matplotlib.image import imread

    pixels = imread(shot)
    assert pixels.shape[:2] == (1000, 1400)
    colours = {tuple(p) for p in pixels[::7, ::7, :3].reshape(-1, 3)}
    assert len(colours) > 20, "the page is blank"


def test_settings_tell_tables_and_rows_apart(tmp_path: Path) -> None:
    """Question-aware scores stand in a table of their own that says so; a row says what departs from its method."""
    nested = ((), ("benchmark.question_aware=true",), ("scorer.window=16",))
    rows = [row(0.5, *RULER, "method=snapkv", "budget=0.2", *own) for own in nested]
    write_page(rows, {}, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "ruler-1024 <small>tiny, seed 0</small>",
        "ruler-1024 <small>tiny, seed 0, benchmark.question_aware=true</small>",
    ]
    assert html.count("scorer.window=16</small>") == 1


class Links(HTMLParser):
    """Every address that the page would load, and the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]


def test_everything_is_inside(page: Path) -> None:
    parser = Links()
    parser.feed(page.read_text())
    assert parser.links
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert parser.tags.count("script") == 1
    assert "link" not in parser.tags


def test_best_of_each_budget_is_bold_and_the_full_cache_comes_first(page: Path) -> None:
    section = next(s for s in page.read_text().split("<section>") if "<h2>ruler-1024" in s)
    bodies = section.split("<tbody")[1:]
    assert 'data-method="full"' in bodies[0]
    bold = [re.findall(r'data-method="(\w+)" data-budget="(\d+%)"', b)[0] for b in bodies if "<b>" in b]
    assert sorted(bold) == [("lukv", "10%"), ("lukv", "20%"), ("lukv", "50%")]


def test_no_runs_yet(tmp_path: Path) -> None:
    write_page([], {}, tmp_path / "new" / "leaderboard.html")
    assert "No finished runs yet" in (tmp_path / "new" / "leaderboard.html").read_text()


def test_a_figure_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plot\.pdf: a figure must be one of \.png, \.svg"):
        write_page([], {"x": tmp_path / "plot.pdf"}, tmp_path / "leaderboard.html")
