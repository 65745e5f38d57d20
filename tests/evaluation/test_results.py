"""From predictions to scores: nothing that goes wrong is lost, and none of it makes a score better."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from dlm.errors import RunError
from dlm.evaluation.graders.checkers import Verdict, checker_of
from dlm.evaluation.report import Published, report_of, show
from dlm.evaluation.results import Result, judge_answers, judge_choices, judged, most_likely, write_results
from dlm.evaluation.sandbox.run import Sandbox
from dlm.evaluation.tasks import ChoiceTask
from tests.running import TIMEOUT


def prediction(id: str, text: str, sample: int = 0, **row: Any) -> dict[str, Any]:
    known = {"id": id, "sample": sample, "prompt": "?", "text": text, "token_ids": [1, 2, 3], "nfe": 2}
    return {**known, "row": {"prompt": "?", "answer": "5", **row}}


REFUSED = [
    {"id": "long", "prompt": "?", "error": {"type": "RequestError", "message": "too long"}, "row": {"answer": "1"}},
    {"id": "broken", "prompt": "", "error": {"type": "DataError", "message": "broken JSON"}},
]


def results_of(rows: list[dict[str, Any]], checker: str = "number") -> list[Result]:
    return list(judged(rows, judge_answers(checker_of(checker, Sandbox()), "answer"), None))


def test_every_state_is_told_apart() -> None:
    rows = [prediction("a", "5"), prediction("b", "6"), prediction("c", "5", answer="no number"), *REFUSED]
    results = results_of(rows)
    assert [(one.id, one.state, one.right) for one in results] == [
        ("a", "judged", True),
        ("b", "judged", False),
        ("c", "checker failed", False),
        ("long", "no answer", False),
        ("broken", "unreadable", False),
    ]
    assert "holds no number" in results[2].reason
    assert results[3].reason == "too long"


def test_all_but_what_asks_nothing_counts_in_the_score() -> None:
    rows = [prediction("a", "5"), prediction("b", "6"), prediction("c", "5", answer="no number"), *REFUSED]
    report = report_of("t", results_of(rows), "pass", [1], 0.95)
    assert (report.scores[0].value, report.scores[0].prompts) == (0.25, 4)
    figures = report.figures()
    assert (figures["answers"], figures["errors"], figures["checked"]) == (3, 2, 4)
    assert (figures["mean_nfe"], figures["tokens_per_forward"]) == (2.0, 1.5)


def raising(row: dict[str, Any], text: str) -> bool:
    """A checker of a user's that has a fault."""
    return {"5": True}[text]


def test_a_checker_that_raises_costs_the_sample_alone() -> None:
    results = results_of([prediction("a", "5"), prediction("b", "6")], f"{__name__}:raising")
    assert [one.right for one in results] == [True, False]
    assert (results[1].state, results[1].reason) == ("checker failed", "KeyError: '6'")


def test_a_sandbox_that_cannot_confine_ends_the_judging() -> None:
    def judge(row: dict[str, Any]) -> Verdict:
        raise RunError("no seccomp here")

    with pytest.raises(RunError, match="no seccomp"):
        list(judged([prediction("a", "5")], judge, None))


def test_pass_at_k_over_samples_of_a_prompt() -> None:
    rows = [prediction("a", "5" if n < 1 else "6", n) for n in range(4)] + [prediction("b", "5", n) for n in range(4)]
    report = report_of("t", results_of(rows), "pass", [1, 2, 4], 0.95)
    assert [(score.name, score.value) for score in report.scores] == [
        ("pass@1", 0.625), ("pass@2", 0.75), ("pass@4", 1.0),
    ]  # fmt: skip
    assert [score.interval.method for score in report.scores] == ["bootstrap", "bootstrap", "wilson"]


def test_a_refused_prompt_is_wrong_at_every_k() -> None:
    rows = [*(prediction("a", "5", n) for n in range(2)), REFUSED[0]]
    report = report_of("t", results_of(rows), "pass", [1, 2], 0.95)
    assert [score.value for score in report.scores] == [0.5, 0.5]


def test_groups_have_scores_of_their_own() -> None:
    rows = [prediction("a", "5", kind="x"), prediction("b", "6", kind="x"), prediction("c", "5", kind="y")]
    results = list(judged(rows, judge_answers(checker_of("number", Sandbox()), "answer"), "kind"))
    report = report_of("t", results, "pass", [1], 0.95)
    assert {group: (score.value, score.prompts) for group, score in report.groups.items()} == {
        "x": (0.5, 2),
        "y": (1.0, 1),
    }
    assert report.figures()["scores"] == {"x": 0.5, "y": 1.0}


@pytest.mark.parametrize(("by", "chosen"), [("sum", 0), ("token", 1), ("character", 2)])
def test_choices_are_compared_as_asked(by: str, chosen: int) -> None:
    scores, lengths, scored = [-4.0, -6.0, -8.0], [1, 3, 2], ["ab", "abc", "abcdefgh"]
    row: dict[str, Any] = {"scores": scores, "lengths": lengths, "row": {"scored": scored, "right": 1}}
    assert most_likely(row, by) == chosen
    verdict = judge_choices(ChoiceTask(name="c", by=by))(row)
    assert (verdict.right, verdict.answer, verdict.reference) == (chosen == 1, "ABC"[chosen], "B")


def test_order_is_kept_when_several_are_judged_at_once() -> None:
    last_is_judged = threading.Event()

    def judge(row: dict[str, Any]) -> Verdict:
        if row["id"] == "0":
            assert last_is_judged.wait(TIMEOUT), "the others are judged meanwhile"
        elif row["id"] == "7":
            last_is_judged.set()
        return Verdict(True)

    rows = [prediction(str(n), "5") for n in range(8)]
    found = list(judged(rows, judge, None, threads=4))
    assert [(one.id, one.reason) for one in found] == [(str(n), "") for n in range(8)]


def test_results_are_lines_of_json(tmp_path: Path) -> None:
    results = results_of([prediction("a", "\u00e4 5"), REFUSED[0]])
    write_results(tmp_path / "results.jsonl", results)
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Result(**json.loads(line)) for line in lines] == results


@pytest.mark.parametrize(
    ("published", "word"), [(51.0, "agrees"), (48.0, "agrees"), (55.0, "DIFFERS"), (40.0, "DIFFERS")]
)
def test_a_published_score_is_told_beside_ours(published: float, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [prediction("a", "5"), prediction("b", "6")]
    report = report_of("t", results_of(rows), "pass", [1], 0.95, Published(published, 3.0, "arXiv 1234.56789"))
    show(report, {"tokens_per_second": None}, {"results": "somewhere"})
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{word}: 50.0 here, {published:g} published (arXiv 1234.56789), {50 - published:+.1f} points" in shown
    assert "wilson 95%: 0.095 to 0.905, 2 prompts" in shown


def test_nothing_judged_is_no_division_by_zero() -> None:
    report = report_of("t", results_of([REFUSED[1]]), "pass", [1], 0.95)
    assert report.figures()["exact_match"] == 0.0
    assert report.figures()["mean_nfe"] == 0.0
