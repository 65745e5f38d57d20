"""The plots of a report, as PNG. Uses matplotlib's figure objects, without its global state."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dlm.report.pareto import Point, interval
from dlm.report.runs import Run
from dlm.report.table import comparable, front_area, on_front, point
from dlm.report.trainings import Training

PANELS = 24
"""At most this many runs get their own histogram or heat map; a page with more would not be read."""
WIDTH, PANEL_HEIGHT, COLUMNS = 10.0, 2.3, 3
"""Figure width and panel height in inches, and panels per row."""
INK, SOFT, SHEET = "#1d1f24", "#5d5f66", "#fffefc"
COLOURS = ("#2253a3", "#c2571a", "#1b7f5c", "#8d3b8f", "#b08900", "#3aa0b5", "#a83246", "#5b6770", "#6b8e23", "#7a5230")
MARKERS = "osD^vPX*<>"
DPI = 150


def accuracy_against_speed(runs: Sequence[Run]) -> bytes | None:
    """Accuracy against tokens per forward, with 95 % intervals, the Pareto front and its area; None if no run has both.
    Runs that differ only in numbers are joined in the order of their speed and labelled with these numbers.

    If several runs crowd at the fast end, a second panel shows that end.
    """
    placed = comparable(runs)
    if not placed:
        return None
    fast = crowded([point(run) for run in placed])
    figure, panels = _row([1.0] if fast is None else [3.0, 2.0])
    speeds, accuracies = zip(*map(point, placed), strict=True)
    last = max(speeds)
    for axes in panels:
        draw_runs(axes, placed, last if fast is None or axes is panels[-1] else np.nextafter(fast, 0.0))
    lowest = float((np.array(accuracies) - _bars(placed)[0]).min())
    panels[0].set_xlim(0, last * 1.08 or 1.0)
    panels[0].set_ylim(max(0.0, lowest - 0.05 * (1.0 - lowest) - 0.01), 1.0 + 0.05 * (1.0 - lowest) + 0.01)
    panels[0].set_ylabel("accuracy (share of right answers)")
    panels[0].set_title(f"Accuracy against tokens per forward; area of the front {front_area(placed):.3f}", loc="left")
    if fast is not None:
        inside = [accuracy for speed, accuracy in map(point, placed) if speed >= fast]
        margin, room = 0.15 * (last - fast) + 0.02, 1.5 * (max(inside) - min(inside)) + 0.01
        ends = (fast - margin, last + margin), (max(0.0, min(inside) - room), min(1.005, max(inside) + room))
        panels[1].set(xlim=ends[0], ylim=ends[1])
        panels[1].set_title("The fast end, framed on the left", loc="left")
        (left, right), (bottom, top) = ends
        panels[0].add_patch(
            Rectangle((left, bottom), right - left, top - bottom, fill=False, edgecolor=SOFT, linewidth=0.8)
        )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower left", ncols=3)
    return _png(figure)


def crowded(points: Sequence[Point]) -> float | None:
    """Where the fast end begins, in tokens per forward, if the last tenth of the axis holds three or more points, but
    not all of them; else None."""
    bound = 0.9 * max(speed for speed, _ in points)
    inside = [speed for speed, _ in points if speed >= bound]
    return min(inside) if 3 <= len(inside) < len(points) else None


def draw_runs(axes: Any, placed: Sequence[Run], told: float) -> None:
    """Runs by group, and the front with the area below it; intervals and numbers up to `told` tokens per forward.

    A group is drawn larger than later ones at the same point, so that all of them are visible.
    """
    groups = list(dict.fromkeys(run.group for run in placed))
    styles = dict(zip(groups, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    best = [point(run) for run in on_front(placed)]
    stairs = [(0.0, best[0][1]), *best]
    axes.step(
        *zip(*stairs, strict=True), where="pre", color=SOFT, linewidth=1.2, linestyle="--", label="Pareto front",
        zorder=1,
    )  # fmt: skip
    axes.fill_between(*zip(*stairs, strict=True), step="pre", color=SOFT, alpha=0.08, linewidth=0, zorder=0)
    numbers: dict[tuple[Point, str], set[str]] = defaultdict(set)
    places = {group: {point(run) for run in placed if run.group == group} for group in groups}
    for number, group in enumerate(groups):
        above = min(3, sum(bool(places[group] & places[later]) for later in groups[number + 1 :]))
        several = sorted((run for run in placed if run.group == group), key=point)
        colour, marker = styles[group]
        speeds, accuracies = zip(*map(point, several), strict=True)
        bars = np.where([speed <= told for speed in speeds], _bars(several), np.nan)
        label = f"{group}, by {', '.join(several[0].varied)}" if len(several) > 1 and several[0].varied else group
        axes.errorbar(
            speeds, accuracies, yerr=bars, color=colour, marker=marker, markersize=7 + 5 * above,
            linewidth=1 + 2 * above, elinewidth=0.8, capsize=2, alpha=0.9, markeredgecolor=SHEET, label=label, zorder=2,
        )  # fmt: skip
        for run in several:
            if len(several) > 1 and point(run)[0] <= told:
                numbers[point(run), ", ".join(run.numbers)].add(colour)
    for (place, text), colours in numbers.items():
        axes.annotate(
            text, place, (6, 6), textcoords="offset points", fontsize=7, annotation_clip=True,
            color=colours.pop() if len(colours) == 1 else INK,
        )  # fmt: skip
    axes.set_xlabel("tokens per forward")


def reward_curves(trainings: Sequence[Training]) -> bytes | None:
    """The reward of each run's steps and measurements, by step; None if no step was taken."""
    begun = [training for training in trainings if training.steps]
    if not begun:
        return None
    figure, [axes] = _row([1.0])
    for training, (colour, marker) in zip(begun, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False):
        steps, measured = training.steps, training.measured
        axes.plot(
            [row["step"] for row in steps], [row["reward"] for row in steps], color=colour, linewidth=0.7, alpha=0.45,
            label=None if measured else training.label,
        )  # fmt: skip
        if measured:
            axes.errorbar(
                [row["step"] for row in measured], [row["validation_reward"] for row in measured],
                yerr=[row["validation_stderr"] for row in measured], color=colour, marker=marker, markersize=6,
                linewidth=1.6, elinewidth=0.9, capsize=2, markeredgecolor=SHEET, label=training.label,
            )  # fmt: skip
    last = max(row["step"] for training in begun for row in training.steps)
    axes.set(xlabel="step", ylabel="mean reward", xlim=(-0.02 * last, 1.02 * last))
    axes.grid(axis="y", color=SOFT, alpha=0.15)
    axes.set_title("Reward by step", loc="left")
    columns = 3 if max(len(training.label) for training in begun) < 40 else 1
    figure.legend(frameon=False, fontsize=8, loc="outside lower left", ncols=columns)
    return _png(figure)


def nfe_histograms(runs: Sequence[Run]) -> bytes | None:
    """Forwards per answer, one panel per run on a shared axis; None if no run has answers."""
    counted = [run for run in runs if run.nfe][:PANELS]
    if not counted:
        return None
    most = max(max(run.nfe) for run in counted)
    width = max(1, math.ceil(most / 48))
    edges = np.arange(0.5, most + width + 0.5, width)
    figure, panels = _panels(len(counted), sharex=True)
    for run, axes in zip(counted, panels, strict=True):
        mean = sum(run.nfe) / len(run.nfe)
        axes.hist(run.nfe, bins=edges, color=COLOURS[0])
        axes.axvline(mean, color=COLOURS[1], linewidth=1.2)
        _whole_numbers(axes)
        axes.set_title(f"{_wrapped(run.label)}\nmean {mean:.2f}", loc="left", fontsize=8)
    figure.supxlabel("forwards per answer (NFE)", fontsize=9, color=INK)
    figure.supylabel("answers", fontsize=9, color=INK)
    return _png(figure)


def reveal_order(runs: Sequence[Run]) -> bytes | None:
    """Share of answers with a position revealed after each forward, one panel per run; None if none has step maps."""
    mapped = [run for run in runs if any(any(steps) for steps in run.step_maps)][:PANELS]
    if not mapped:
        return None
    figure, panels = _panels(len(mapped), sharex=False)
    for run, axes in zip(mapped, panels, strict=True):
        shares = revealed_by(run.step_maps)
        image = axes.imshow(
            shares, origin="upper", aspect="auto", cmap=colormaps["cividis"], vmin=0, vmax=1, interpolation="nearest",
            extent=(0.5, shares.shape[1] + 0.5, shares.shape[0] + 0.5, 0.5),
        )  # fmt: skip
        _whole_numbers(axes)
        axes.set_title(_wrapped(run.label), loc="left", fontsize=8)
    figure.supxlabel("position after the prompt", fontsize=9, color=INK)
    figure.supylabel("forward", fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=panels, location="top", shrink=0.4, aspect=40, pad=0.02)
    bar.set_label("share of answers in which it is revealed by then", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return _png(figure)


def revealed_by(step_maps: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """`[forwards, positions]`: of the answers that ever reveal a position, the share that has revealed it after each
    forward; nan if none does."""
    forwards = max(max(steps, default=0) for steps in step_maps)
    counts = np.zeros((forwards, max(map(len, step_maps))))
    for steps in step_maps:
        for position, step in enumerate(steps):
            if step > 0:
                counts[step - 1, position] += 1
    ever = counts.sum(axis=0)
    shares = np.full_like(counts, np.nan)
    np.divide(counts.cumsum(axis=0), ever, out=shares, where=ever > 0)
    last = int(np.flatnonzero(ever)[-1]) + 1 if ever.any() else 0
    return shares[:, :last]


def _bars(runs: Sequence[Run]) -> npt.NDArray[np.float64]:
    """Distances from accuracy to the ends of its interval, `[2, runs]`; 0 if the number of answers is unknown."""
    bars = np.zeros((2, len(runs)))
    for number, run in enumerate(runs):
        _, accuracy = point(run)
        if run.figures.checked:
            low, high = interval(accuracy, run.figures.checked)
            bars[:, number] = accuracy - low, high - accuracy
    return bars.clip(min=0.0)


def _row(widths: Sequence[float]) -> tuple[Figure, list[Any]]:
    """Panels side by side, with these shares of the width."""
    figure = Figure(figsize=(WIDTH * (1.0 if len(widths) == 1 else 1.3), 6.0), layout="constrained", facecolor=SHEET)
    panels = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=list(widths)).flat)
    for axes in panels:
        _calm(axes)
    return figure, panels


def _panels(count: int, *, sharex: bool) -> tuple[Figure, list[Any]]:
    rows, columns = math.ceil(count / COLUMNS), min(count, COLUMNS)
    figure = Figure(figsize=(WIDTH, max(3.0, PANEL_HEIGHT * rows + 0.5)), layout="constrained", facecolor=SHEET)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex)
    panels = list(grid.flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    for axes in panels[:count]:
        _calm(axes)
    return figure, panels[:count]


def _calm(axes: Any) -> None:
    axes.set_facecolor(SHEET)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=SOFT, labelbottom=True)


def _whole_numbers(axes: Any) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)


def _wrapped(label: str, width: int = 44) -> str:
    """A label in lines of about `width` characters, broken between overrides."""
    lines = [""]
    for word in label.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
