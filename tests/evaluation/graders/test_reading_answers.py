"""Answers as models write them, and what is read out of them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from dlm.evaluation.graders.choices import choice_letter
from dlm.evaluation.graders.mathematics import boxed, same, uniform, value
from dlm.evaluation.graders.numbers import final_number, numbers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 18", 18),
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", 18),
        ("#### $1,234", 1234),
        ("#### 70,000", 70000),
        ("#### 1,234,567.50 dollars", Fraction("1234567.5")),
        ("#### -3", -3),
        ("#### \u22127", -7),
        ("#### 18 eggs, of 20", 18),
        ("#### 5\n#### 6", 6),
        ("#### none, so 4", 4),
        ("The answer is 42.", 42),
        ("The answer is $42.50 per day, for 3 days.", Fraction("42.5")),
        ("The answer is: -$5", -5),
        ("Final answer: 3 * 6 = 18 dollars", 18),
        ("The answer to this question is 7 apples. There were 12.", 7),
        ("So the answer is 3. Wait, the answer is 4.", 4),
        ("The answer is seven, that is 7", 7),
        ("\\boxed{18}", 18),
        ("\\boxed{\\$1,800}", 1800),
        ("\\boxed{x = 12}", 12),
        ("\\boxed{12 \\text{ apples}}", 12),
        ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("\\boxed{50\\%}", 50),
        ("First \\boxed{1}, then \\boxed{2}. That took 3 steps.", 2),
        ("\\boxed{unclosed 5, and 6", 6),
        ("He has 10-4=6 left", 6),
        ("He has 10 - 4", 4),
        ("It fell to -4", -4),
        ("It costs .5 dollars", Fraction(1, 2)),
        ("That is 1/2 of it", Fraction(1, 2)),
        ("It is 18.", 18),
        ("18.00", 18),
        ("Two of 3, in 2024", 2024),
        ("No number here.", None),
        ("", None),
        ("####", None),
    ],
)
def test_the_final_number_of_a_worked_answer(text: str, found: Fraction | int | None) -> None:
    assert final_number(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,2,3", [1, 2, 3]),
        ("1,234 and 12,34", [1234, 12, 34]),
        ("3-5 days", [3, 5]),
        ("(4)-2", [4, 2]),
        ("$-5 and -$5", [-5, -5]),
        ("5%, 1/4 and 2/0", [5, Fraction(1, 4), 2]),
    ],
)
def test_numbers_inside_a_text(text: str, found: list[Fraction | int]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{5}", "5"),
        ("so $\\boxed{\\frac{3}{4}}$.", "\\frac{3}{4}"),
        ("\\boxed{\\left\\{1,2\\right\\}}", "\\left\\{1,2\\right\\}"),
        ("\\boxed{\\text{(A)}} and \\fbox{ 7 }", "7"),
        ("\\boxed{1} then \\boxed{\\sqrt{2", "1"),
        ("$\\boxed 5$", "5"),
        ("no box", None),
        ("\\boxed{", None),
    ],
)
def test_the_last_closed_box(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\frac12", "\\frac{1}{2}"),
        ("\\dfrac{1}{2}", "1/2"),
        ("0.5", "\\tfrac{1}{2}"),
        (".5", "0.50"),
        ("1\\frac{1}{2}", "3/2"),
        ("-\\frac{1}{2}", "-0.5"),
        ("\\$1,000", "1000"),
        ("10{,}000", "10000"),
        ("50\\%", "50"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90\u00b0"),
        ("12\\text{ inches}", "12"),
        ("12 \\text{ cm}^2", "12"),
        ("12\\text{cm}", "12"),
        ("5 \\text{ m}", "5"),
        ("x=5", "5"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("(0.5, 1)", "(\\frac{1}{2}, 1)"),
        ("\\{1, 2\\}", "\\{2,1\\}"),
        ("1, 2", "1,2"),
        ("\\sqrt2", "\\sqrt{2}"),
        ("2\\sqrt{3}", "2 \\sqrt 3"),
        ("\\text{Monday}", "Monday"),
        ("2\\pi", "2\u03c0"),
        ("x \\leq 5", "x\\le5"),
        ("7.", "7"),
        (r"\begin{pmatrix} -2 \\ 1 \end{pmatrix}", r"\begin{pmatrix}-2\\1\end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "\\begin{pmatrix}1&2\\\\\n3&4\\end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix} 1\,\\\,2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix} \frac12 \\\frac13 \end{pmatrix}", r"\begin{pmatrix}\frac{1}{2}\\ \dfrac{1}{3}\end{pmatrix}"),
        (r"\begin{pmatrix}1\\{2}\end{pmatrix}", r"\begin{pmatrix}1 \\ {2}\end{pmatrix}"),
    ],
)
def test_answers_that_say_the_same(one: str, other: str) -> None:
    assert same(one, other)
    assert same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        ("\\frac{1}{2}", "\\frac{1}{3}"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(1,2,3)"),
        ("\\{1,1\\}", "\\{1,2\\}"),
        ("1,2", "12"),
        ("x+1", "x-1"),
        ("3m", "3"),
        ("2n", "2"),
        ("\\sqrt{2}", "2"),
        ("", ""),
        ("", "0"),
        ("\\frac{1}{0}", "0"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 12 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \ 2 \end{pmatrix}"),
    ],
)
def test_answers_that_do_not(one: str, other: str) -> None:
    assert not same(one, other)


def test_a_value_is_a_number_and_nothing_else() -> None:
    assert value("3/4") == Fraction(3, 4)
    assert value("x+3") is None
    assert value("1/0") is None
    assert value("__import__('os')") is None
    assert uniform("  y = \\, 3 \\text{ units}. ") == "3"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. because of gravity", "B"),
        ("B) gravity", "B"),
        ("**C**", "C"),
        ("The answer is B.", "B"),
        ("The correct answer is (D), not (A).", "D"),
        ("Answer: c", "C"),
        ("answer:\n\nA", "A"),
        ("The best option is C because A is wrong.", "C"),
        ("The answer is option C. Option B is wrong.", "C"),
        ("Option B is wrong, so the answer is C.", "C"),
        ("I thought the answer is A, but the answer is B", "B"),
        ("\\boxed{D}", "D"),
        ("\\boxed{\\text{B}}", "B"),
        ("It must be (C), since (A) fails? No: (C)", "C"),
        ("A dog is an animal.", None),
        ("The answer is a dog.", None),
        ("I do not know", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(text: str, found: str | None) -> None:
    assert choice_letter(text, 4) == found


def test_more_letters_for_more_choices() -> None:
    assert choice_letter("(J)", 10) == "J"
    assert choice_letter("(C)", 2) is None
