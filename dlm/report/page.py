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


def write_report(runs: Sequence[Run], output: Path, title: str) -> Report:
    """Write the report of `runs` into `output`, in place of an earlier one.

    Raises:
        RunError: the folder cannot be written to.
    """
    drawn = {name: draw([run for run in runs if run.whole]) for name, draw in PLOTS.items()}
    images = {name: png for name, png in drawn.items() if png is not None}
    texts = {
        "report.html": page_of(runs, images, title),
        "table.csv": table.as_csv(runs),
        "report.json": table.as_json(runs) + "\n",
    }
    contents = {f"{name}.png": png for name, png in images.items()}
    contents |= {name: text.encode() for name, text in texts.items()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in drawn.keys() - images.keys():
            (output / f"{name}.png").unlink(missing_ok=True)
        for name, content in contents.items():
            (output / name).write_bytes(content)
    except OSError as error:
        raise RunError(
            f"cannot write to {output}: {error.strerror}; choose another place with output=<folder>"
        ) from error
    return Report(
        page=output / "report.html",
        images={name: output / f"{name}.png" for name in images},
        files=tuple(output / name for name in contents),
    )


def page_of(runs: Sequence[Run], images: Mapping[str, bytes], title: str) -> str:
    """The page: table, plots, and what is missing."""
    whole = [run for run in runs if run.whole]
    return render(
        "report.html.jinja",
        title=title,
        runs=len(runs),
        whole=len(whole),
        columns=table.COLUMNS,
        lines=table.cells(runs),
        area=table.front_area(whole),
        missing=[(run.label, run.missing) for run in runs if run.missing],
        plots=[
            {
                "name": name,
                "image": data_uri(images[name], "image/png") if name in images else None,
                "caption": CAPTIONS[name] if name in images else ABSENT[name],
            }
            for name in PLOTS
        ],
        shown=plots.PANELS,
    )
