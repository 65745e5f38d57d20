"""Numbers as they stand in answers: `$1,234.50`, `-3`, `1/2`, `#### 18`. Compared exactly, as fractions."""

from __future__ import annotations

import re
from fractions import Fraction

from dlm.evaluation.graders.mathematics import boxed, value

NUMBER = re.compile(
    r"""
    (?P<minus>(?<![\w.)\]}%])(?<![\d)\]}]\s)[-\u2212])?   # behind a digit or a bracket it subtracts
    \\?[$\u20ac\u00a3]?\s?
    (?P<inner>(?<=[$\u20ac\u00a3])[-\u2212])?             # $-5
    (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?
    (?P<decimals>(?<!\d\d,)\.\d+)?
    (?P<below>\s?/\s?\d+(?![\d/]))?
    """,
    re.VERBOSE,
)
MARK = "####"
SAID = re.compile(r"\banswer\b(?:\s+[\w']+){0,6}?\s*(?:\bis\b|\bare\b|=|:)", re.IGNORECASE)
"""Words that announce the answer: `the answer is`, `final answer:`, `the answer to this question is`."""
END = re.compile(r"\n|[.!?](?=\s|$)")
"""Where the sentence that announces it ends."""


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text, in order. Thousands are parted by commas, decimals by a point; units are passed over.

    A minus belongs to a number unless it stands behind a digit or a closing bracket: `10-4` holds 10 and 4.
    """
    found = []
    for match in NUMBER.finditer(text):
        if match["whole"] is None and match["decimals"] is None:
            continue
        number = Fraction((match["whole"] or "0").replace(",", "") + (match["decimals"] or ""))
        below = int(match["below"].strip(" /")) if match["below"] else 0
        if below:
            number /= below
        found.append(-number if match["minus"] or match["inner"] else number)
    return found


def final_number(text: str) -> Fraction | None:
    """The number that a worked answer ends with; None where it holds none.

    In this order: the first number behind the last `####`; what the last closed `\\boxed{}` holds, behind its equals
    sign; the first number of the last sentence that announces the answer, behind its equals sign; the last number.
    """
    _, mark, rest = text.rpartition(MARK)
    if mark and (found := numbers(rest)):
        return found[0]
    box = boxed(text)
    if box is not None:
        whole = value(box)
        if whole is not None:
            return whole
        if found := numbers(box.rpartition("=")[2]):
            return found[0]
    for match in reversed(list(SAID.finditer(text))):
        end = END.search(text, match.end())
        said = text[match.end() : end.start() if end else len(text)]
        if found := numbers(said.rpartition("=")[2]):
            return found[0]
    found = numbers(text)
    return found[-1] if found else None
