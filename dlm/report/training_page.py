"""The report on trainings: the result and the reward curve of each."""

from __future__ import annotations

from collections.abc import Sequence

from dlm.report.page import Content
from dlm.report.plots import reward_curves
from dlm.report.table import as_csv
from dlm.report.trainings import COLUMNS, Training, cells

CAPTION = (
    "Points: mean reward on the held-out prompts, with its standard error over prompts. Thin lines: mean reward of "
    "each step's own answers. Shares of step time: rollout, reward, score (older policies and the reference), update."
)


def content_of_trainings(trainings: Sequence[Training], title: str) -> Content:
    """The report on runs of `dlm.rl.grpo`."""
    curves = reward_curves(trainings)
    return Content(
        title=title,
        runs=len(trainings),
        whole=sum(training.summary is not None for training in trainings),
        columns=COLUMNS,
        lines=cells(trainings),
        missing=[(training.label, training.missing) for training in trainings if training.missing],
        plots={"reward": (curves, "No step was taken." if curves is None else CAPTION)},
        area=None,
        texts={"training.csv": as_csv(COLUMNS, cells(trainings))},
    )
