"""Code out of answers, and the programs that test it. Nothing is parsed or run here: it is text of unknown origin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import dedent, indent

BLOCK = re.compile(
    r"""
    ^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n          # a fence and a language
    (.*?)
    (?:^[ \t]*\1[`~]*[ \t]*$                             # a fence that is no shorter
    |^[ \t]*[`~]{3,}[ \t]*$(?!.*^[ \t]*\1[`~]*[ \t]*$)   # any, where none of these follows
    |\Z)
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
"""A fenced block: its fence, language and content."""
CODE = re.compile(
    r"(?:def|async|class|import|from|if|elif|else|for|while|try|except|finally|with|return|pass|raise|assert|global|del)\b"
    r"|[@#)\]}\"'\s]|[A-Za-z_][\w.]*(?:\[[^\]]*\])?\s*(?:[-+*/%|&]?=|,|\(|:\s*\w+\s*=)|$"
)
"""How a line of Python may begin."""


def code_of(text: str, name: str = "") -> str:
    """The code in an answer.

    Fenced blocks come first: the first that defines `name`, else the longest; one that does not close goes to the end
    of the text. Without fences the prose around is left out: all before the first definition or import, and from the
    first line on that is no code. A text that begins indented, or has none of these, is returned as it is: the body of
    a function.
    """
    blocks = _fenced(text)
    if blocks:
        return next((block for block in blocks if name and defines(block, name)), max(blocks, key=len))
    start = re.search(r"^(?:def |class |import |from \w[\w.]* import |@|async def )", text, re.MULTILINE)
    if start is None or text.strip("\r\n").startswith((" ", "\t")):
        return text
    lines: list[str] = []
    for line in text[start.start() :].splitlines():
        if line and not CODE.match(line):
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def defines(code: str, name: str) -> bool:
    """Whether a function of that name begins at the left margin."""
    return re.search(rf"^(?:async )?def {re.escape(name)}\s*\(", code, re.MULTILINE) is not None


@dataclass(frozen=True)
class Program:
    """An answer as a program, with its tests.

    Attributes:
        code: the answer together with what it continues from.
        tests: statements that raise unless the answer is right; they call its functions.
        setup: helpers and imports that the tests need; they are part of `code` too.
    """

    code: str
    tests: str
    setup: str = ""

    def __str__(self) -> str:
        """Everything as one module, which runs without an error if the answer is right."""
        return f"{self.code}\n\n{self.tests}\n"


def humaneval_program(prompt: str, text: str, entry_point: str, test: str) -> Program:
    """The program for an answer to a HumanEval problem (arXiv 2107.03374).

    An answer with the signature replaces the function of the prompt, whose imports and helpers stay. One without is its
    body: it goes on from the prompt, is indented if it is not, and ends with the first line at the left margin.
    """
    before, tests = _before(prompt, entry_point), f"{test}\n\ncheck({entry_point})"
    setup = before if defines(prompt, entry_point) else ""  # a prompt of another kind may not be a module by itself
    code = code_of(text, entry_point)
    for inner in (code, dedent(code)):
        if defines(inner, entry_point):
            return Program(f"{before}{inner}", tests, setup)
    return Program(f"{prompt.rstrip()}\n{_body(code)}", tests, setup)


def mbpp_program(text: str, tests: Sequence[str], setup: str = "") -> Program:
    """The program for an answer to an MBPP problem (arXiv 2108.07732)."""
    called = re.search(r"assert\s*\(*\s*(?:\w+\()*?(\w+)\s*\(", tests[0]) if tests else None
    code = code_of(text, called[1] if called else "")
    return Program(f"{setup}\n{code}", "\n".join(tests), setup)


def _fenced(text: str) -> list[str]:
    """What stands in fences as Python, or as no language; not what is empty."""
    found = [(block[2].lower(), block[3]) for block in BLOCK.finditer(text)]
    return [code for language, code in found if language in ("", "python", "py", "python3") and code.strip()]


def _before(prompt: str, entry_point: str) -> str:
    """What stands in a prompt before the function that is asked for."""
    start = re.search(rf"^(?:async )?def {re.escape(entry_point)}\s*\(", prompt, re.MULTILINE)
    return prompt[: start.start()] if start else prompt + "\n"


def _body(code: str) -> str:
    """The body of a function, indented by four, up to the first line at the left margin.

    Where only the first line stands there, it has lost its indentation on the way: texts are often stripped.
    """
    lines = [line.expandtabs(4) for line in code.strip("\r\n").rstrip().splitlines()]
    if not lines:
        return "    pass"
    if _margin(lines[0]) == 0:
        later = [_margin(line) for line in lines[1:] if line.strip()]
        opens = lines[0].rstrip().endswith(":")
        if later and min(later) > 0 and not (opens and later[0] == min(later)):
            lines[0] = " " * min(later) + lines[0]
        else:
            return indent("\n".join(lines), "    ")
    end = next((place for place, line in enumerate(lines) if line.strip() and _margin(line) == 0), len(lines))
    return indent(dedent("\n".join(lines[:end])), "    ")


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())
