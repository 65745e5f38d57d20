"""A report as files: a self-contained `report.html`, and its parts next to it."""

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
"""Plots by file name."""

ABSENT = {
    "accuracy": "No run has both an accuracy and tokens per forward.",
    "nfe": "No run has answers.",
    "reveal_order": "No run has step maps: record them with generation.record=true.",
}
"""Captions of plots that have nothing to show."""

CAPTIONS = {
    "accuracy": "Bars are 95 % confidence intervals. Dashed: the Pareto front, runs that no other beats in both; the "
    "area below it, from 0 tokens per forward, measures what they dominate.",
    "nfe": "Forwards per answer. The vertical line is the mean.",
    "reveal_order": "Share of answers in which each position is revealed after each forward: dark, none; light, all. A "
    "straight diagonal is left-to-right order.",
}


@dataclass(frozen=True)
class Report:
    """The files written.

    Attributes:
        page: the HTML file.
        images: PNG files by plot; plots with nothing to show are left out.
        files: all of them.
    """

    page: Path
    images: dict[str, Path]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Content:
    """The content of a report.

    Attributes:
        title: of the page.
        runs, whole: number of runs, and of finished runs.
        columns, lines: the table.
        missing: what runs lack, by label.
        plots: PNG (None if there is nothing to show) and caption, by file name.
        area: of the Pareto front, in tokens per forward, if there is one.
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
    """The report on runs of predict and evaluate."""
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
    """Write a report into `output`, its page as `name`, replacing an earlier one.

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
            f"cannot write to {output}: {error.strerror}; choose another folder with output=<folder>"
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
