"""A report as files: `report.html`, self-contained, and its parts beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm.errors import RunError
from dlm.report import plots, table
from dlm.report.assets import data_uri, render
from dlm.report.runs import Run

PLOTS = {
    "accuracy": plots.accuracy_against_speed,
    "nfe": plots.nfe_histograms,
    "reveal_order": plots.reveal_order,
}
"""Plots by the name of their file."""

ABSENT = {
    "accuracy": "No run has both an accuracy and tokens per forward.",
    "nfe": "No run has answers.",
    "reveal_order": "No run has step maps: record them with generation.record=true.",
}
"""What is said where a plot has nothing to show."""

CAPTIONS = {
    "accuracy": "Bars are 95 % confidence intervals. Dashed: the runs that no other beats in both; the area below it, "
    "from 0 tokens per forward, counts what they dominate.",
    "nfe": "How many forwards an answer took. The vertical line is the mean.",
    "reveal_order": "How far each position was after each forward: dark, no answer has it revealed; light, all have. A "
    "straight diagonal is an order from left to right.",
}


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: the HTML file.
        images: PNG files by plot; plots without anything to show are left out.
        files: all of them.
    """

    page: Path
    images: dict[str, Path]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Content:
    """What a report says.

    Attributes:
        title: of the page.
        runs, whole: how many there are, and how many of them are through.
        columns, lines: the table.
        missing: what runs lack, by label.
        plots: PNG by the name of its file, None where it has nothing to show; with what is said below it.
        area: of the Pareto front, in tokens per forward, where there is one.
        texts: other files by name.
    """

    title: str
    runs: int
    whole: int
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    missing: Sequence[tuple[str, Sequence[str]]]
    plots: Mapping[str, tuple[bytes | None, str]]
    area: float | None
    texts: Mapping[str, str]


def content_of(runs: Sequence[Run], title: str) -> Content:
    """The report of runs of predict and evaluate."""
    whole = [run for run in runs if run.whole]
    drawn = {name: draw(whole) for name, draw in PLOTS.items()}
    return Content(
        title=title,
        runs=len(runs),
        whole=len(whole),
        columns=table.COLUMNS,
        lines=table.cells(runs),
        missing=[(run.label, run.missing) for run in runs if run.missing],
        plots={name: (png, ABSENT[name] if png is None else _caption(name, len(whole))) for name, png in drawn.items()},
        area=table.front_area(whole),
        texts={"table.csv": table.as_csv(table.COLUMNS, table.cells(runs)), "report.json": table.as_json(runs) + "\n"},
    )


def _caption(name: str, runs: int) -> str:
    shown = f" The first {plots.PANELS} runs." if runs > plots.PANELS and name != "accuracy" else ""
    return CAPTIONS[name] + shown


def write(content: Content, output: Path, name: str) -> Report:
    """Write a report into `output`, its page as `name`, in place of an earlier one.

    Raises:
        RunError: the folder cannot be written to.
    """
    images = {plot: png for plot, (png, _) in content.plots.items() if png is not None}
    files = {f"{plot}.png": png for plot, png in images.items()}
    files |= {each: text.encode() for each, text in {name: page_of(content), **content.texts}.items()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for plot in content.plots.keys() - images.keys():
            (output / f"{plot}.png").unlink(missing_ok=True)
        for each, written in files.items():
            (output / each).write_bytes(written)
    except OSError as error:
        raise RunError(
            f"cannot write to {output}: {error.strerror}; choose another place with output=<folder>"
        ) from error
    return Report(
        page=output / name,
        images={plot: output / f"{plot}.png" for plot in images},
        files=tuple(output / each for each in files),
    )


def page_of(content: Content) -> str:
    """The page: table, plots, and what is missing."""
    pictures = [
        {"image": None if png is None else data_uri(png, "image/png"), "caption": caption}
        for png, caption in content.plots.values()
    ]
    return render("report.html.jinja", content=content, plots=pictures)
