"""What an answer is worth, and rewards that fail."""

from __future__ import annotations

import pytest

from dlm.demo.rewards import balanced_split
from dlm.errors import RunError
from dlm.rl.grpo.rewards import CheckerReward, FunctionReward, RewardRunner

HERE = "tests.rl.grpo.rewarding"


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("Parts: 6 + 6", 1.0),
        ("Parts: 5 + 7", 1 - 2 / 12),
        ("Parts: 11 + 1", 1 - 10 / 12),
        ("Parts: 6 + 7", 0.0),
        ("", 0.0),
    ],
)
def test_the_nearer_the_parts_the_more_a_split_is_worth(text, worth):
    assert balanced_split({"prompt": "Split 12 apples into 2."}, text) == pytest.approx(worth)


def test_a_checker_is_a_reward_of_one_or_nothing():
    reward = CheckerReward("number", "answer").function()
    assert reward({"prompt": "?", "answer": "#### 12"}, "so it is 12.") == 1.0
    assert reward({"prompt": "?", "answer": "#### 12"}, "so it is 13.") == 0.0


def test_a_function_of_the_users_is_a_reward():
    assert FunctionReward(f"{HERE}:length").function()({}, "four") == 4.0


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (FunctionReward(f"{HERE}:missing"), "reward.path="),
        (FunctionReward("no.such.module:name"), "No module named 'no'"),
        (FunctionReward(f"{HERE}:NUMBER"), "is a int, not a function"),
        (FunctionReward("length"), "package.module:function"),
        (CheckerReward("numbers"), "reward.checker=numbers: no such checker; choose one of demo, number"),
        (CheckerReward("number"), "reward.answer_field is not set"),
        (CheckerReward("humaneval", "test"), "reward.checker=humaneval runs code"),
    ],
)
def test_what_cannot_be_a_reward_is_named(reward, said):
    [fault] = reward.faults()
    assert said in fault


def test_a_module_that_python_cannot_read_is_a_fault(tmp_path, monkeypatch):
    (tmp_path / "unreadable_reward.py").write_text("def reward(row, text) return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    [fault] = FunctionReward("unreadable_reward:reward").faults()
    assert "reward.path=unreadable_reward:reward: SyntaxError" in fault


def test_good_rewards_have_no_fault():
    assert FunctionReward(f"{HERE}:length").faults() == []
    assert CheckerReward("demo").faults() == []


def test_an_answer_that_cannot_be_judged_is_worth_nothing_and_its_kind_is_told_once(capsys):
    judge = RewardRunner(FunctionReward(f"{HERE}:picky").function())
    found = judge([{}] * 4, ["a", "bb", "c", "dddd"])
    assert [verdict.reward for verdict in found] == [0.0, 2.0, 0.0, 4.0]
    assert [verdict.failure for verdict in found] == ["KeyError: 'a'", None, "KeyError: 'c'", None]
    assert capsys.readouterr().out == "the reward failed on an answer, which scores 0: KeyError: 'a'\n"
    assert [verdict.reward for verdict in judge([{}], ["e"])] == [0.0], "it works in general"


@pytest.mark.parametrize(("name", "said"), [("broken", "KeyError: 'a'"), ("endless", "inf is not a finite number")])
def test_a_reward_that_fails_on_everything_ends_the_run(name, said):
    judge = RewardRunner(FunctionReward(f"{HERE}:{name}").function())
    with pytest.raises(RunError, match=f"the reward failed on all of the first 2 answers: .*{said}"):
        judge([{"prompt": "a"}] * 2, ["x", "y"])


@pytest.mark.parametrize(
    ("reward", "needs"),
    [
        (CheckerReward("number", "solution"), ("solution",)),
        (CheckerReward("demo"), ("family",)),
        (CheckerReward("demo", "solution"), ("family", "solution")),
        (CheckerReward(f"{HERE}:length"), ()),
        (FunctionReward(f"{HERE}:length"), ()),
    ],
)
def test_a_reward_needs_what_its_checker_reads(reward, needs):
    assert reward.needs == needs
