"""The letter that an answer to a multiple-choice question chooses."""

from __future__ import annotations

import re
from string import ascii_uppercase

from dlm.evaluation.graders.mathematics import boxed

DRESS = r"[\s(\[*\"'`$]*"
"""What a letter may be dressed in: brackets, quotes, bold."""
SAID = (
    r"(?i:(?:answer|(?:correct|right|best)\s+(?:choice|option))\b"
    r"(?:\s+(?:is|are|would\s+be|must\s+be|choice|option))*\s*[:=]?)"
)
"""Words that announce it: `the answer is`, `Answer:`, `the correct option is`."""


def choice_letter(text: str, num_choices: int) -> str | None:
    r"""The letter chosen, `A` for the first of `num_choices` (1..26); None where none is.

    In this order: what the last `\boxed{}` holds; the last sentence that announces it (`the answer is (B)`,
    `Answer: b`); a letter that the text begins with and that is no word of a sentence (`C.`, `(C) because`, `C`); the
    last one in brackets. A small letter counts where nothing but punctuation follows, since `a` is a word.
    """
    letters = ascii_uppercase[:num_choices]
    letter = rf"([{letters}](?![\w'])|[{letters.lower()}](?=\s*(?:[.)\]*]|$)))"
    box = boxed(text)
    if box is not None:
        plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)|[{}()\s.$]", "", box).upper()
        if len(plain) == 1 and plain in letters:
            return plain
    said = re.findall(SAID + DRESS + letter, text, re.MULTILINE)
    if said:
        return str(said[-1]).upper()
    first = re.match(rf"{DRESS}([{letters}])\s*(?:[.):\]*,\n]|$)", text)
    if first is not None:
        return first[1]
    inside = re.findall(rf"[(\[]([{letters}])[)\]]", text)
    return str(inside[-1]) if inside else None
