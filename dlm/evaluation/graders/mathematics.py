r"""Answers in LaTeX: found in their `\boxed{}`, and compared by what they say rather than by how they are typeset.

Nothing is evaluated: a formula is compared as text once its spelling is made uniform, a number by its value.
"""

from __future__ import annotations

import re
from fractions import Fraction

BOX = re.compile(r"\\(?:boxed|fbox)\s*")
SPELLINGS = (
    (r"\\\\", ";"),
    (r"\\(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![A-Za-z])", ""),
    (r"\\[!,;: ]|~|\\quad|\\qquad", ""),
    (r"\\(?:d|t|c)frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:text|mathrm|textbf|mathbf|mbox|textnormal)\s*\{([^{}]*)\}", r"\1"),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|\u00b0", ""),
    (r"\\(?=[$%])", ""),
    (r"[$%]", ""),
    (r"\{,\}", ","),
    (r"\\(?:le|leq|leqslant)(?![A-Za-z])", "<="),
    (r"\\(?:ge|geq|geqslant)(?![A-Za-z])", ">="),
    (r"\\neq?(?![A-Za-z])", "!="),
    (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
    (r"\\pi(?![A-Za-z])|\u03c0", "pi"),
    (r"\\infty(?![A-Za-z])|\u221e", "infty"),
    (r"\u2212|\u2013", "-"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\\\{", "{"),
    (r"\\\}", "}"),
)
"""Spellings that mean the same, in the order in which they are replaced. The break between the rows of a matrix comes
first: its second backslash begins no command with what follows."""
UNIT = re.compile(
    r"(?<=[\d})])\s*(?:dollars?|cents?|degrees?|units?|inch(?:es)?|feet|foot|miles?|hours?|minutes?|seconds?|days?|"
    r"(?:square|cubic|sq\.?)\s*\w+|(?:[cmk]m|(?<=\s)m)(?:\^\{?[23]\}?)?|mph|percent|points?|ways)\.?$"
)
"""Units behind a number or a formula."""
NAMED = re.compile(r"^(?:[A-Za-z]|[A-Za-z]\([A-Za-z]\))=(?![=])")
"""`x=` and `f(x)=` before a value."""
THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
FRACTION = re.compile(r"([-+]?)(\d+)?\\frac\{([-+]?\d+)\}\{(\d+)\}")
SLASHED = re.compile(r"([-+]?\d+)/(\d+)")
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
OPEN, CLOSED = "([{", ")]}"


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` (or `\fbox{}`) whose braces close; None where there is none.

    `\boxed 5`, without braces, holds what follows up to a space or a dollar sign.
    """
    for match in reversed(list(BOX.finditer(text))):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            bare = re.match(r"[^\s$.,]+", rest)
            if bare is not None:
                return bare[0]
            continue
        depth = 0
        for place, (before, letter) in enumerate(zip(" " + rest, rest, strict=False)):
            if letter in "{}" and before != "\\":
                depth += 1 if letter == "{" else -1
            if depth == 0:
                return rest[1:place].strip()
    return None


def uniform(answer: str) -> str:
    """An answer in one spelling: without typesetting, units, dollar and per cent signs, `x =`, and white space."""
    text = answer.strip().rstrip(".").strip()
    for spelling, plain in SPELLINGS:
        text = re.sub(spelling, plain, text)
    text = UNIT.sub("", text.strip())
    text = re.sub(r"\s+", "", text)
    text = NAMED.sub("", text)
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    return text


def value(answer: str) -> Fraction | None:
    """The number that an answer is, as a whole: `1,000`, `-.5`, `3/4`, `1\\frac{1}{2}`, `50\\%` (50); None for more."""
    text = uniform(answer)
    fraction = FRACTION.fullmatch(text)
    if fraction is not None and int(fraction[4]):
        part = Fraction(int(fraction[3]), int(fraction[4])) + int(fraction[2] or 0)
        return -part if fraction[1] == "-" else part
    slashed = SLASHED.fullmatch(text)
    if slashed is not None and int(slashed[2]):
        return Fraction(int(slashed[1]), int(slashed[2]))
    return Fraction(text) if DECIMAL.fullmatch(text) else None


def same(one: str, other: str) -> bool:
    """Whether two answers say the same: equal numbers, equal spellings, or lists of the same kind with equal parts.

    A list is what stands in one pair of brackets, which must be alike, or is parted by commas; order counts, but not in
    braces: these are sets.
    """
    values = value(one), value(other)
    if None not in values:
        return values[0] == values[1]
    left, right = uniform(one), uniform(other)
    if left == right:
        return bool(left)
    brackets = [text[0] + text[-1] if text and text[0] in OPEN and text[-1] in CLOSED else "" for text in (left, right)]
    if brackets[0] != brackets[1]:
        return False
    if brackets[0]:
        left, right = left[1:-1], right[1:-1]
    parts = _parts(left), _parts(right)
    if len(parts[0]) != len(parts[1]) or (len(parts[0]) == 1 and not brackets[0]):
        return False
    if brackets[0] == "{}":
        rest = list(parts[1])
        for part in parts[0]:
            twin = next((number for number, each in enumerate(rest) if same(part, each)), None)
            if twin is None:
                return False
            rest.pop(twin)
        return True
    return all(same(*pair) for pair in zip(*parts, strict=True))


def _parts(text: str) -> list[str]:
    """What commas part outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in OPEN) - (letter in CLOSED)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
