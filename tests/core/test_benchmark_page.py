"""docs/benchmarks.md: programs replace their own sections and leave the rest alone."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks._section import END, PAGE, Section, begin, end, replace_section

HAND = f"# Benchmarks\n\nBy hand.\n\n{END}\n\n## Log\n\nBy hand too.\n"


def section(name: str, number: int) -> str:
    made = Section(name, f"Title of {name}", Namespace(full=False))
    made.text("""A paragraph
        in two lines.""")
    made.head("what", "ms")
    made.row("ours", number)
    return made.markdown("`command`, a day")


def test_sections_are_replaced_and_nothing_else():
    page = replace_section(replace_section(HAND, "a", section("a", 1)), "b", section("b", 2))
    assert page.index(begin("a")) < page.index(begin("b")) < page.index(END) < page.index("## Log")
    again = replace_section(page, "a", section("a", 3))
    assert again == page.replace("| ours | 1 |", "| ours | 3 |")
    assert "A paragraph in two lines.\n\n| what | ms |\n|---|--:|\n| ours | 3 |" in again
    assert replace_section(again, "a", section("a", 3)) == again


@pytest.mark.parametrize("damage", [begin("a"), end("a")])
def test_a_damaged_page_is_not_touched(damage):
    page = replace_section(HAND, "a", section("a", 1)).replace(damage, "")
    with pytest.raises(ValueError, match="one of the two markers of section a"):
        replace_section(page, "a", section("a", 2))
    with pytest.raises(ValueError, match="must have this line once"):
        replace_section("# Nothing", "a", section("a", 1))


def test_the_repositorys_page_takes_a_new_section():
    assert begin("zzz") in replace_section(PAGE.read_text(), "zzz", section("zzz", 1))
