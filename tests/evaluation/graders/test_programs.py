"""Code out of answers of every shape, run against tests: what a person would accept passes."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.evaluation.graders.programs import Program, code_of, humaneval_program, mbpp_program

PROMPT = '''import math


def root(x):
    return math.sqrt(x)


def add_roots(a, b):
    """Add the roots of two numbers.
    >>> add_roots(4, 9)
    5.0
    """
'''
TEST = """
METADATA = {}


def check(candidate):
    assert candidate(4, 9) == 5
    assert candidate(0, 1) == 1
"""
BODY = "    first = root(a)\n    return first + root(b)\n"
WHOLE = f"def add_roots(a, b):\n{BODY}"

RIGHT = {
    "body": BODY,
    "body without indentation": "first = root(a)\nreturn first + root(b)",
    "body whose first line lost its indentation": "first = root(a)\n    return first + root(b)\n",
    "body and a next function": f"{BODY}\n\ndef other():\n    return (",
    "body and a main": f"{BODY}\n\nif __name__ == '__main__':\n    print(add_roots(input()))\n",
    "whole function": WHOLE,
    "prompt repeated": PROMPT + BODY,
    "fence": f"Here you are:\n\n```python\n{WHOLE}```\nIt adds the roots.",
    "fence without language": f"```\n{WHOLE}\n```",
    "fence that does not close": f"```python\n{WHOLE}",
    "fence with body": f"```python\n{BODY}```",
    "two fences, the second with the function": f"```bash\npip install x\n```\n```py\nx = 1\n```\n```py\n{WHOLE}```",
    "tildes": f"~~~python\n{WHOLE}~~~",
    "four backticks": f"Here:\n\n````python\n{WHOLE}````\nIt adds the roots.",
    "four backticks without language": f"````\n{WHOLE}````",
    "four tildes": f"~~~~py\n{WHOLE}~~~~",
    "a longer fence at the end": f"```python\n{WHOLE}`````\nIt adds the roots.",
    "a shorter fence at the end": f"````python\n{WHOLE}```\nIt adds the roots.",
    "a shorter fence inside": f'````python\n"""So:\n```\nadd_roots(4, 9)\n```\n"""\n{WHOLE}````\nIt adds the roots.',
    "backticks inside tildes": f'~~~\n"""So:\n```\nadd_roots(4, 9)\n```\n"""\n{WHOLE}~~~',
    "indented fence": "1. So:\n   ```python\n" + "".join(f"   {line}\n" for line in WHOLE.splitlines()) + "   ```\n",
    "prose around a function": f"Sure!\n\n{WHOLE}\nThis function adds the roots.\n",
    "helper and function": f"def half(x):\n    return x / 2\n\n\n{WHOLE}",
    "import and annotations": "from typing import Any\n\ndef add_roots(a: Any, b: Any) -> float:\n" + BODY,
}


def runs(program: Program) -> bool:
    """Whether a program that this test wrote ends without an error."""
    try:
        exec(compile(str(program), "program", "exec"), {"__name__": "answer"})
    except Exception:
        return False
    return True


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_answer_passes_in_whatever_shape(text: str) -> None:
    assert runs(humaneval_program(PROMPT, text, "add_roots", TEST))


@pytest.mark.parametrize(
    "text",
    ["", "    pass", "I cannot do that.", "    return a + b", "```python\n```", "def another(a, b):\n    return 5"],
)
def test_a_wrong_answer_fails(text: str) -> None:
    assert not runs(humaneval_program(PROMPT, text, "add_roots", TEST))


ROW: dict[str, Any] = {"tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "setup": "import math"}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("def add(a, b):\n    return a + b", True),
        ("```python\ndef add(a, b):\n    return int(math.fsum((a, b)))\n```", True),
        ("[BEGIN]\ndef add(a, b):\n    return a + b\n[DONE]", True),
        ("def add(a, b):\n    return a - b", False),
        ("def plus(a, b):\n    return a + b", False),
    ],
)
def test_asserts_of_mbpp(text: str, passes: bool) -> None:
    assert runs(mbpp_program(text, **ROW)) is passes


def test_of_several_blocks_the_one_with_the_function() -> None:
    text = (
        "```python\nprint('a much longer block that is an example of its use')\n```\n```python\ndef f():\n    pass\n```"
    )
    assert code_of(text, "f") == "def f():\n    pass\n"
    assert code_of(text).startswith("print(")
