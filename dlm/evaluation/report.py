"""What a task's results say: scores with intervals, what went wrong, and how far it is from a published score.

`TaskReport.figures` is what `summary.json` holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.evaluation.metrics import Interval, interval, pass_at_k
from dlm.evaluation.results import CHECKER_FAILED, JUDGED, NO_ANSWER, UNREADABLE, Result


@dataclass(frozen=True)
class Score:
    """A mean over prompts.

    Attributes:
        name: `pass@1` and so on, or `accuracy`.
        value: 0..1.
        prompts: how many it is a mean over.
        interval: for the mean.
    """

    name: str
    value: float
    prompts: int
    interval: Interval

    @classmethod
    def of(cls, name: str, values: Sequence[float], level: float) -> Score:
        mean = sum(values) / len(values) if values else 0.0
        return cls(name, mean, len(values), interval(values, level))

    def __str__(self) -> str:
        low, high = self.interval.low, self.interval.high
        method = f"{self.interval.method} {self.interval.level:.0%}"
        return f"{self.value:.3f}  ({method}: {low:.3f} to {high:.3f}, {self.prompts} prompts)"


@dataclass(frozen=True)
class Published:
    """A score that others have published.

    Attributes:
        score: in per cent, of the first `k`.
        tolerance: in points; further away the two are said to differ.
        source: where it stands.
    """

    score: float
    tolerance: float
    source: str

    def compare(self, score: Score) -> dict[str, Any]:
        """The published score beside ours, in per cent and points."""
        ours = 100 * score.value
        difference = round(ours - self.score, 2)
        return {**asdict(self), "ours": ours, "difference": difference, "agrees": abs(difference) <= self.tolerance}


@dataclass
class TaskReport:
    """The results of a run.

    Attributes:
        task, metric: names.
        scores: the first is the task's.
        groups: of the first score, by group.
        counts: samples by state.
        tokens, nfe: summed over samples with an answer.
        examples: by state, which sample came into it first and why; not of judged ones.
        comparison: with a published score; None without.
        how: what judged, such as the sandbox; for the record.
    """

    task: str
    scores: list[Score]
    groups: dict[str, Score]
    counts: dict[str, int]
    tokens: int
    nfe: int
    examples: dict[str, str] = field(default_factory=dict)
    comparison: dict[str, Any] | None = None
    how: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        return self.counts[JUDGED] + self.counts[CHECKER_FAILED]

    def figures(self) -> dict[str, Any]:
        """The report in plain values, with the names that summaries of `dlm.predict` have for the same things."""
        first = self.scores[0]
        return {
            "task": self.task,
            "metric": first.name,
            "exact_match": first.value,
            "checked": first.prompts,
            "interval": asdict(first.interval),
            "scores": {group: score.value for group, score in self.groups.items()},
            "all_scores": [asdict(score) for score in self.scores],
            "groups": {group: asdict(score) for group, score in self.groups.items()},
            "answers": self.answers,
            "errors": self.counts[NO_ANSWER] + self.counts[UNREADABLE],
            "states": self.counts,
            "mean_nfe": self.nfe / self.answers if self.answers else 0.0,
            "tokens_per_forward": self.tokens / self.nfe if self.nfe else 0.0,
            "published": self.comparison,
            **self.how,
        }


def report_of(
    task: str,
    results: Iterable[Result],
    metric: str,
    ks: Sequence[int],
    level: float,
    published: Published | None = None,
) -> TaskReport:
    """Sum up.

    Args:
        task: its name.
        results: all samples; those of a prompt share an id.
        metric: `pass` is told as `pass@k` for each of `ks`; another name as it is.
        ks: each at most the number of samples of a prompt.
        level: of the intervals.
        published: what to compare the first score with.
    """
    counts = dict.fromkeys((JUDGED, NO_ANSWER, CHECKER_FAILED, UNREADABLE), 0)
    right: dict[str, list[bool]] = defaultdict(list)
    groups: dict[str, set[str]] = defaultdict(set)
    refused: set[str] = set()
    examples: dict[str, str] = {}
    tokens = nfe = 0
    for result in results:
        counts[result.state] += 1
        if result.state != JUDGED:
            reason = result.reason.partition("\n")[0]
            examples.setdefault(result.state, f"{result.id}: {reason}")
        if result.state == UNREADABLE:
            continue
        if result.state == NO_ANSWER:
            refused.add(result.id)
        right[result.id].append(result.right)
        if result.group is not None:
            groups[result.group].add(result.id)
        tokens, nfe = tokens + result.tokens, nfe + result.nfe

    def chance(id: str, k: int) -> float:
        return 0.0 if id in refused else pass_at_k(len(right[id]), sum(right[id]), k)

    names = {k: f"pass@{k}" if metric == "pass" else metric for k in ks}
    scores = [Score.of(names[k], [chance(id, k) for id in right], level) for k in ks]
    by_group = {
        group: Score.of(names[ks[0]], [chance(id, ks[0]) for id in sorted(groups[group])], level)
        for group in sorted(groups)
    }
    comparison = None if published is None else published.compare(scores[0])
    return TaskReport(task, scores, by_group, counts, tokens, nfe, examples, comparison)


def show(report: TaskReport, speed: dict[str, Any], files: dict[str, str]) -> None:
    """Print the table on standard output.

    Args:
        report: the results.
        speed: `tokens_per_second`, `tokens`, `seconds`, `occupancy`, or None for each where nothing was decoded.
        files: what lies where.
    """
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for group, score in report.groups.items():
        table.add_row(f"{score.name}, {group}", str(score))
    for score in report.scores:
        table.add_row(score.name, str(score))
    for state, count in report.counts.items():
        if count or state == JUDGED:
            told = report.examples.get(state)
            table.add_row(f"samples, {state}", Text(str(count) if told is None else f"{count}  ({told})"))
    figures = report.figures()
    table.add_row("forwards an answer (NFE)", f"{figures['mean_nfe']:.2f}")
    table.add_row("tokens a forward", f"{figures['tokens_per_forward']:.2f}")
    if speed.get("tokens_per_second") is not None:
        table.add_row("tokens/s", f"{speed['tokens_per_second']:.1f}  ({speed['tokens']} in {speed['seconds']:.1f} s)")
    for name, path in files.items():
        table.add_row(name, path)
    if report.comparison is not None:
        table.add_row("published", _in_words(report.comparison))
    # As wide as it needs to be: a path that is folded cannot be copied.
    Console(width=max(Console().width, 40 + max(map(len, files.values()), default=0))).print(table)


def _in_words(comparison: dict[str, Any]) -> str:
    verdict = "agrees" if comparison["agrees"] else "DIFFERS"
    return (
        f"{verdict}: {comparison['ours']:.1f} here, {comparison['score']:g} published ({comparison['source']}), "
        f"{comparison['difference']:+.1f} points, tolerance {comparison['tolerance']:g}"
    )
