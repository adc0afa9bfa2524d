"""The leaderboard page, as a user sees it: in headless Chromium, from a file, without network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
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
        {
            **{"id": "vt-0", "task": "vt", "question": f"Which? {ATTACK}", "prediction": f" ABCDE {ATTACK}"},
            **{"references": ["ABCDE", "FGHIJ"], "score": 0.5, "kept_share": 0.2},
        },
        {"id": "vt-1", "task": "vt", "error": "out of memory"},
    ]
    if result["budget"]["kept_share"] < 1 and result["benchmark"].startswith("ruler"):
        samples[0]["kept_tokens"] = {"tokens": ["<bos>", ATTACK, "AB", "CDE"], "layers": {"0": "9900", "1": "9009"}}
    own = [text for text in overrides if text.startswith(("method", "budget"))]
    commands = {"command": f"python run.py -m {' '.join(overrides)}", "repeat": f"python run.py {' '.join(own)}"}
    aware = "benchmark.question_aware=true" in overrides
    facts = {"protocol": f"question-{'aware' if aware else 'agnostic'}", "data": ""}
    return {**result, **facts, **commands, "samples": samples, "depths": {"vt": [0.5, None, 1.0, None, 0.0]}}


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


def after(page: Path, actions: str, fragment: str = "", options: Sequence[str] = ()) -> Any:
    """What the JavaScript `actions` return once they have run in the loaded page, as a user's clicks would. They may
    return a promise of it."""
    html = page.read_text()
    copy = page.with_name("acting.html")
    # A copy without the security policy, which would (rightly) not run the script that plays the user.
    html = re.sub(r"<meta http-equiv=[^>]*>", "", html)
    play = (
        f"<script>Promise.resolve((() => {{{actions}}})())"
        ".then(out => document.documentElement.dataset.out = JSON.stringify(out))</script>"
    )
    copy.write_text(html.replace("</body>", f"{play}</body>"))
    found = re.search(r'data-out="([^"]*)"', chromium(copy, "--dump-dom", *options, fragment=fragment))
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
const field = name => document.forms[0].elements[name];
const tick = (name, ...values) => { for (const box of document.querySelectorAll(`input[name=${name}]`))
  if (box.checked !== values.includes(box.value)) box.click(); };
const search = text => { field("text").value = text;
  field("text").dispatchEvent(new Event("input", {bubbles: true})); };
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
def test_filters_combine_and_the_full_cache_stays(page: Path) -> None:
    out = after(
        page,
        FIRST_TABLE
        + """
        const all = visible().length;
        tick("method", "snapkv"); const one = visible();
        const sections = [...document.querySelectorAll("section:has(table)")].filter(s => !s.hidden).length;
        tick("method", "snapkv", "lukv"); const two = visible();
        const said = document.querySelector("[data-of=method]").textContent;
        tick("budget", "20%"); const both = visible();
        const note = document.getElementById("shown").textContent, address = location.hash;
        document.forms[0].reset();
        return new Promise(done => setTimeout(() => done({all, one, sections, two, said, both, note, address,
          after: visible().length, empty: location.hash}), 50));""",
    )
    assert out["all"] == 15
    assert sorted(out["one"]) == ["full full", "snapkv 10%", "snapkv 20%", "snapkv 50%"]
    assert out["sections"] == 1
    assert len(out["two"]) == 7
    assert out["said"] == "lukv, snapkv"
    assert sorted(out["both"]) == ["full full", "lukv 20%", "snapkv 20%"]
    assert out["note"] == "3 of 15 runs"
    assert out["address"] == "#method=lukv&method=snapkv&budget=20%25"
    assert (out["after"], out["empty"]) == (15, "")


@browser
def test_search_finds_what_is_shown_and_nothing_else(page: Path) -> None:
    """Every word must stand in the row or its table's title. A command in closed details is not shown."""
    out = after(
        page,
        FIRST_TABLE
        + """
        search("PYRAMID"); const text = visible();
        search("ruler pyramidkv 20%"); const words = visible();
        search("python run.py"); const hidden = visible().length;
        search(""); document.querySelector('[data-method=lukv] button.open').click();
        search("python run.py"); const shown = visible();
        return {text, words, hidden, shown};""",
    )
    assert sorted(out["text"]) == ["full full", "pyramidkv 10%", "pyramidkv 20%", "pyramidkv 50%"]
    assert out["words"] == ["full full", "pyramidkv 20%"]
    assert out["hidden"] == 0
    assert out["shown"] == ["full full", "lukv 50%"]


@browser
def test_an_address_opens_a_view(page: Path) -> None:
    out = after(
        page, FIRST_TABLE + "return visible();", fragment="#method=lukv&method=streaming&budget=10%25&text=uniform"
    )
    assert out == ["full full", "streaming 10%"]


@browser
def test_the_address_says_what_is_sorted_and_open(page: Path) -> None:
    """Where one page leaves off, another goes on from its address."""
    left = after(
        page,
        FIRST_TABLE
        + """
        click("Mean"); click("Mean");
        table.querySelector('[data-method=snapkv] td').click();
        return {address: location.hash, order: values("Mean").map(Number)};""",
    )
    assert left["order"] == sorted(left["order"])
    found = after(
        page,
        FIRST_TABLE
        + """
        const open = [...document.querySelectorAll(".details")].filter(d => !d.hidden);
        return {order: values("Mean").map(Number), open: open.map(d => d.closest("tbody").dataset.method)};""",
        fragment=left["address"],
    )
    assert found == {"order": left["order"], "open": ["snapkv"]}


@browser
def test_a_click_anywhere_on_a_row_opens_it_and_its_texts_are_texts(page: Path) -> None:
    out = after(
        page,
        """
        const run = document.querySelector("tbody[data-method=lukv]");
        const details = run.querySelector(".details");
        const states = [...run.rows[0].cells].map(cell => { cell.click(); return details.hidden; });
        run.querySelector("button.open").click();
        if (details.hidden) run.querySelector("button.open").click();
        details.querySelector("code").click();
        const [question] = details.querySelectorAll(".samples p");
        const [prediction, expected, score, kept] = details.querySelectorAll(".samples dd");
        return {states, open: !details.hidden, expanded: run.querySelector("button.open").ariaExpanded,
          code: details.querySelector("code").textContent, question: question.textContent,
          prediction: prediction.textContent, elements: prediction.children.length, expected: expected.textContent,
          score: score.textContent, kept: kept.textContent, maps: details.querySelectorAll(".map").length};""",
    )
    assert out["states"] == [i % 2 == 1 for i in range(len(out["states"]))]
    assert (out["open"], out["expanded"]) == (True, "true")
    assert out["code"] == "python run.py method=lukv budget=0.5"
    assert out["question"] == f"vt Which? {ATTACK}"
    assert (out["prediction"], out["elements"]) == (f" ABCDE {ATTACK}", 0)
    assert (out["expected"], out["score"], out["kept"]) == ("ABCDE, FGHIJ", "50", "20.0%")
    assert out["maps"] == 2


@browser
def test_a_phone_scrolls_tables_and_not_the_page(page: Path) -> None:
    out = after(
        page,
        """
        document.querySelector("button.open").click();
        return {page: document.documentElement.scrollWidth, window: innerWidth,
          details: document.querySelector(".inside").getBoundingClientRect().right};""",
        options=("--window-size=420,900",),
    )
    assert out["window"] <= 500
    assert out["page"] <= out["window"]
    assert out["details"] <= out["window"]


@browser
def test_what_each_method_kept(page: Path) -> None:
    """A strip a run; a click on one shades the context by what that run kept, in the chosen layers."""
    out = after(
        page,
        """
        const section = document.querySelector("#kept");
        const [sample, layers] = section.querySelectorAll("select");
        const strips = () => [...section.querySelectorAll(".strips button")];
        const shares = () => [...section.querySelector(".context").children]
          .map(e => Number(e.style.getPropertyValue("--share")));
        const first = shares();
        strips()[1].click(); const second = shares();
        layers.value = "1"; layers.dispatchEvent(new Event("change", {bubbles: true})); const layer = shares();
        const names = strips().map(b => b.firstChild.textContent);
        return {samples: sample.options.length, names, first, second, layer,
          answer: [...section.querySelectorAll("mark")].map(e => e.textContent),
          text: section.querySelector(".context").textContent, asked: section.querySelector(".asked").textContent};""",
    )
    assert out["samples"] == 1
    assert len(out["names"]) == 12
    assert out["first"] == [1, 0.5, 0, 0.5]
    assert out["second"] == out["first"]
    assert out["layer"] == [1, 0, 0, 1]
    assert out["answer"] == ["AB", "CDE"]
    assert out["text"] == f"<bos>{ATTACK}ABCDE"
    assert out["asked"] == f"Which? {ATTACK} Expected: ABCDE, FGHIJ"


@browser
def test_what_was_kept_follows_the_filters(page: Path) -> None:
    out = after(
        page,
        FIRST_TABLE
        + """
        const kept = document.querySelector("#kept");
        const names = () => [...kept.querySelectorAll(".strips button")].map(b => b.firstChild.textContent);
        tick("method", "snapkv"); tick("budget", "20%"); const few = names();
        search("longbench"); tick("method"); tick("budget"); const gone = kept.hidden;
        search(""); return {few, gone, back: !kept.hidden && names().length};""",
    )
    assert out == {"few": ["snapkv, 0.2"], "gone": True, "back": 12}


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
    assert re.findall(r"<section><h2>(.*?)</h2>", html) == [
        "ruler-1024 <small>tiny, ruler-1024, question-agnostic: 3 tasks, 20 samples of each (n = 60), seed 0</small>",
        "ruler-1024 <small>tiny, ruler-1024, question-aware: 3 tasks, 20 samples of each (n = 60), seed 0, "
        "benchmark.question_aware=true</small>",
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
    rows = [body.partition('class="details"')[0] for body in bodies]
    bold = [re.findall(r'data-method="(\w+)" data-budget="(\d+%)"', b)[0] for b in rows if "<b>" in b]
    assert sorted(bold) == [("lukv", "10%"), ("lukv", "20%"), ("lukv", "50%")]


def test_no_runs_yet(tmp_path: Path) -> None:
    write_page([], {}, tmp_path / "new" / "leaderboard.html")
    assert "No finished runs yet" in (tmp_path / "new" / "leaderboard.html").read_text()


def test_a_figure_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plot\.pdf: a figure must be one of \.png, \.svg"):
        write_page([], {"x": tmp_path / "plot.pdf"}, tmp_path / "leaderboard.html")
