"""From predictions to judged samples: one result for each row, whatever a checker does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dlm.errors import RunError
from dlm.evaluation.graders.checkers import Checker, Verdict
from dlm.evaluation.tasks import ChoiceTask
from dlm.runs.shards import to_line
from dlm.runs.whole_files import replace

JUDGED, NO_ANSWER, UNREADABLE, CHECKER_FAILED = "judged", "no answer", "unreadable", "checker failed"
"""States of a sample: judged; not decoded, such as too long a prompt; a row of the data that asks nothing or has no
reference; the checker raised. All but `unreadable` count in the score, and only judged ones can be right."""


@dataclass(frozen=True)
class Result:
    """One sample.

    Attributes:
        id, sample: which.
        group: value of the task's `group_field`.
        state: see `JUDGED` and the others.
        right: whether it counts.
        text: the model's answer.
        answer, reference, reason: as in `Verdict`.
        tokens, nfe: visible or scored tokens, forwards.
    """

    id: str
    sample: int
    group: str | None
    state: str
    right: bool
    text: str | None
    answer: str | None = None
    reference: str | None = None
    reason: str = ""
    tokens: int = 0
    nfe: int = 0


Judge = Callable[[dict[str, Any]], Verdict]
"""Judges a row of predictions that has an answer."""


def judge_answers(checker: Checker, answer_field: str | None) -> Judge:
    """For decoded answers."""

    def judge(prediction: dict[str, Any]) -> Verdict:
        row = prediction["row"]
        return checker.check(row, row.get(answer_field or ""), prediction["text"])

    return judge


def judge_choices(task: ChoiceTask) -> Judge:
    """For scored choices: the most likely one is the answer, the first of equals."""

    def judge(prediction: dict[str, Any]) -> Verdict:
        row = prediction["row"]
        chosen = most_likely(prediction, task.by)
        wanted = row["right"]
        return Verdict(chosen == wanted, ascii_uppercase[chosen], ascii_uppercase[wanted])

    return judge


def most_likely(prediction: dict[str, Any], by: str) -> int:
    """The place of the choice with the highest score, as a sum or by `token` or `character`."""
    scores, texts = prediction["scores"], prediction["row"]["scored"]
    lengths = {"sum": [1] * len(scores), "token": prediction["lengths"], "character": [len(text) for text in texts]}[by]
    each = [score / length for score, length in zip(scores, lengths, strict=True)]
    return each.index(max(each))


def judged(rows: Iterable[dict[str, Any]], judge: Judge, group_field: str | None, threads: int = 1) -> Iterator[Result]:
    """A result for each row of predictions, in their order.

    A judge that raises costs its sample alone. `RunError` goes through: no sample can be judged then.

    Args:
        rows: predictions.
        judge: what makes an answer right.
        group_field: of the row.
        threads: samples judged at once; more than one only for judges that wait, as for a process.
    """

    def result(row: dict[str, Any]) -> Result:
        return _result(row, judge, group_field)

    if threads == 1:
        yield from map(result, rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(result, rows)


def _result(row: dict[str, Any], judge: Judge, group_field: str | None) -> Result:
    fields = row.get("row", {})
    group = None if group_field is None else str(fields.get(group_field))
    known: dict[str, Any] = {"id": row["id"], "sample": row.get("sample", 0), "group": group}
    if "error" in row:
        state = UNREADABLE if row["error"]["type"] == "DataError" else NO_ANSWER
        return Result(**known, state=state, right=False, text=None, reason=row["error"]["message"])
    tokens = sum(row["lengths"]) if "lengths" in row else len(row["token_ids"])
    known |= {"text": row["text"], "tokens": tokens, "nfe": row["nfe"]}
    try:
        verdict = judge(row)
    except RunError:
        raise
    except Exception as error:  # a checker may be anybody's
        return Result(**known, state=CHECKER_FAILED, right=False, reason=f"{type(error).__name__}: {error}")
    return Result(**known, state=JUDGED, **asdict(verdict))


def write_results(path: Path, results: Sequence[Result]) -> None:
    """One JSON object a line. Raises `RunError` when there is no room."""
    replace(path, [to_line(asdict(result)) for result in results])


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
