r"""Whether two answers are the same: as numbers, or as LaTeX that is cleaned of what makes no difference.

The clean-up follows the steps of math_equivalence.py (Hendrycks et al. 2021, arXiv 2103.03874; hendrycks/math): spacing
commands, \left and \right, units in \text, degrees, dollars and per cent go; \dfrac and \tfrac become \frac; braces
are put where \frac12 and \sqrt3 lack them; a/b of whole numbers becomes \frac{a}{b}; x = 5 is 5. Beyond it, numbers are
compared by value: 0.5, .50 and \frac{1}{2}; 1,000 and 1000.
"""

from __future__ import annotations

import re
from fractions import Fraction

DROPPED = re.compile(
    r"\\[!,;: ]|\\(?:left|right)(?![a-z])|\^\s*\{?\\circ\}?|\\?[$%]|\\(?:displaystyle|mathrm|mbox)(?![a-z])"
)
UNIT = re.compile(r"\\(?:text|mathrm)\{\s[^{}]*\}\s*$")


def same_answer(one: str, other: str) -> bool:
    r"""
    >>> same_answer("1,000", "1000.0"), same_answer(r"\dfrac12", "1/2"), same_answer("(1, 2)", "(1,2)")
    (True, True, True)
    """
    a, b = clean(one), clean(other)
    if a == b:
        return True
    x, y = read_number(a), read_number(b)
    return x is not None and x == y


def clean(text: str) -> str:
    r"""The LaTeX of an answer without what makes no difference.

    >>> clean(r"x = \tfrac{3}{4}\text{ cm}"), clean(r"\text{east}"), clean(r"90^\circ")
    ('\\frac{3}{4}', 'east', '90')
    """
    text = UNIT.sub("", text.strip().rstrip("."))
    text = DROPPED.sub("", text)
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\s+", "", text)
    left, equals, right = text.partition("=")
    if equals and len(left) <= 2 and "=" not in right:
        text = right
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\w)(\w|\{[^{}]*\})", lambda m: rf"\frac{{{m[1]}}}{{{m[2].strip('{}')}}}", text)
    text = re.sub(r"\\frac(\{[^{}]*\})(\w)", r"\\frac\1{\2}", text)
    return re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)


def read_number(text: str) -> Fraction | None:
    r"""The value of a cleaned number; None for anything else.

    >>> read_number("1,234.50"), read_number(r"-\frac{3}{4}"), read_number("x")
    (Fraction(2469, 2), Fraction(-3, 4), None)
    """
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}", text)
    if fraction and int(fraction[3]):
        value = Fraction(int(fraction[2]), int(fraction[3]))
        return -value if fraction[1] else value
    plain = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d*)?", text) else text
    return Fraction(plain) if re.fullmatch(r"-?(\d+(\.\d*)?|\.\d+)", plain) else None
