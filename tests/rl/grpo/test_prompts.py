"""Which prompts a step asks."""

from __future__ import annotations

from collections import Counter

import pytest

from dlm.data.prompts import Fault, Prompt
from dlm.errors import ConfigError, DataError, RequestError
from dlm.rl.grpo.prompts import PromptSampler, Steps, TrainingPrompt, questions_of

QUESTIONS = [TrainingPrompt(f"q{number}", {"prompt": str(number)}, (number,)) for number in range(13)]


def test_each_question_is_asked_once_a_turn_and_none_of_those_held_out():
    curriculum = PromptSampler(QUESTIONS, held_out=3, per_step=4, seed=1)
    asked = [question.id for number in range(1, 6) for question in curriculum.of_step(number)]
    assert Counter(asked) == {f"q{number}": 2 for number in range(10)}
    assert asked[:10] != asked[10:]
    assert [question.id for question in curriculum.validation] == ["q10", "q11", "q12"]


def test_a_step_does_not_depend_on_the_ones_before():
    one, other = (PromptSampler(QUESTIONS, 3, 4, seed=1) for _ in range(2))
    first = [one.of_step(number) for number in range(1, 9)]
    assert [other.of_step(number) for number in range(8, 0, -1)] == first[::-1]
    assert [PromptSampler(QUESTIONS, 3, 4, seed=2).of_step(number) for number in range(1, 9)] != first


def test_processes_share_a_step_among_them():
    curriculum = PromptSampler(QUESTIONS, 3, 4, seed=1)
    parts = [list(Steps(curriculum, 3, 5, rank, 2)) for rank in range(2)]
    for number, *shares in zip(range(3, 6), *parts, strict=True):
        assert [share.number for share in shares] == [number, number]
        asked = [question.id for share in shares for question in share.questions]
        assert sorted(asked) == sorted(question.id for question in curriculum.of_step(number))


def test_too_few_prompts_are_refused():
    with pytest.raises(
        ConfigError, match=r"13 prompts without validation.prompts=10 leave 3, fewer than prompts_per_step=4"
    ):
        PromptSampler(QUESTIONS, 10, 4, 0)


def test_a_row_that_cannot_be_used_is_named():
    prompts = [Prompt("a", "hello"), Prompt("b", "", {}, Fault("DataError", "field 'prompt' is empty"))]
    with pytest.raises(DataError, match="row b: field 'prompt' is empty; fix it"):
        questions_of(prompts, None, (), 64)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"family": "add"}, "no field 'answer'"),
        ({"answer": None, "family": "add"}, "field 'answer' is null"),
        ({"answer": "1"}, "no field 'family'"),
        ({}, "no field 'answer'"),
    ],
)
def test_a_row_without_a_field_that_the_reward_reads_is_named(row, fault):
    prompts = [Prompt("a", "hello", {"answer": "1", "family": "add"}), Prompt("b", "hello", row), Prompt("c", "hello")]
    with pytest.raises(DataError, match=rf"row b: {fault} \(and 1 more\); fix it"):
        questions_of(prompts, None, ("answer", "family"), 64)


class Codec:
    def check_fits(self, text, positions):
        if len(text) > positions:
            raise RequestError(f"{len(text)} characters")

    def encode(self, text):
        return (len(text),)


def test_a_row_that_cannot_fit_is_named():
    with pytest.raises(DataError, match="row b: 6 characters; fix it"):
        questions_of([Prompt("a", "hello"), Prompt("b", "hellos")], Codec(), (), 5)


def test_a_row_with_every_field_is_a_question():
    prompts = [Prompt("a", "hello", {"answer": 0, "family": ""})]
    [question] = questions_of(prompts, Codec(), ("prompt", "answer", "family"), 64)
    assert question == TrainingPrompt("a", {"prompt": "hello", "answer": 0, "family": ""}, (5,))


def test_a_question_that_is_asked_twice_in_a_step_knows_of_it():
    """So that its answers differ."""
    curriculum = PromptSampler(QUESTIONS[:9], 3, 4, seed=1)
    asked = [question for number in range(1, 40) for question in curriculum.of_step(number)]
    assert len({(question.id, question.turn) for question in asked}) == len(asked)
