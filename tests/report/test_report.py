"""`python -m dlm.report`: files, words, and what is logged."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dlm.cli.command_line import compose_config
from dlm.errors import ConfigError, RunError
from dlm.report import plots
from dlm.report.__main__ import run as report
from dlm.report.config import register
from dlm.report.page import Report, content_of, write
from dlm.report.runs import Run, read_runs
from dlm.report.table import on_front
from tests import running
from tests.report.folders import answer, begun, finished, sweep


def make(*overrides: str) -> int:
    """Run in this process."""
    register()
    return report(compose_config("report", overrides), overrides)


def write_report(runs: list[Run], output: Path, title: str) -> Report:
    return write(content_of(runs, title), output, "report.html")


class Page(HTMLParser):
    """The attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and value is not None]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_a_folder_of_runs_becomes_a_table_plots_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(f"runs={sweep(tmp_path)}", "logger=none") == 0
    shown = capsys.readouterr()
    assert "algorithm=dual_cache sampler.threshold=0.9" in shown.out
    assert "area of the Pareto front: 1.750 tokens per forward" in shown.out
    assert "it died or was stopped: 1 of 4" in shown.err
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {"report.html", "report.json", "table.csv", "accuracy.png", "nfe.png", "reveal_order.png"}
    assert str(tmp_path / "report" / "report.html") in shown.out
    for image in (tmp_path / "report").glob("*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "report" / "table.csv").read_text().splitlines()))
    assert [(row["accuracy"], row["tokens/forward"], row["front"]) for row in rows] == [
        ("1.000", "1.00", "yes"), ("0.750", "2.00", "yes"), ("0.250", "1.33", ""),
    ]  # fmt: skip
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["front"] == [f"algorithm=dual_cache sampler.threshold={bar}" for bar in ("0.9", "0.5")]
    assert told["front_area"] == 1.75
    assert [one["whole"] for one in told["runs"]] == [True, True, True, False]


def test_the_page_needs_no_other_file_and_says_what_is_missing(tmp_path: Path) -> None:
    written = write_report(read_runs(sweep(tmp_path)), tmp_path / "out", "<runs & more>")
    text = written.page.read_text()
    page = Page(text)
    assert len(page.links) == 5
    assert all(link.startswith("data:image/") for link in page.links)
    assert not re.search(r"@import|url\(", text)
    said = " ".join(page.texts)
    assert "<runs & more>" in said
    for part in ("3 of 4 runs finished", "no summary.json", "1 of 4 prompts are answered", "1.750"):
        assert part in said


def test_a_report_again_takes_the_place_of_the_first_and_is_no_run(tmp_path: Path) -> None:
    sweep(tmp_path)
    first = write_report(read_runs(tmp_path), tmp_path / "report", "t")
    assert first.images.keys() == {"accuracy", "nfe", "reveal_order"}
    for name in ("a", "b"):
        (tmp_path / name / "predictions.jsonl").unlink()
    again = write_report(read_runs(tmp_path), tmp_path / "report", "t")
    assert again.images.keys() == {"accuracy", "nfe"}
    assert not (tmp_path / "report" / "reveal_order.png").exists()
    assert "record them with generation.record=true" in again.page.read_text()


def test_runs_that_all_died_make_a_report_of_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "run", done=2)
    assert make(f"runs={tmp_path}", "logger=none", f"output={tmp_path / 'out'}") == 0
    assert "2 of 4 prompts are answered" in capsys.readouterr().err
    assert "0 of 1 run finished" in (tmp_path / "out" / "report.html").read_text()
    assert not list((tmp_path / "out").glob("*.png"))


def test_runs_without_an_accuracy_are_drawn_where_they_can_be(tmp_path: Path) -> None:
    finished(tmp_path / "run", [{**answer(0, right=True, nfe=2, step_map=[1, 2]), "row": {}}])
    written = write_report(read_runs(tmp_path), tmp_path / "out", "t")
    assert written.images.keys() == {"nfe", "reveal_order"}
    assert "No run has both" in written.page.read_text()


def test_empty_answers_are_drawn_at_no_speed(tmp_path: Path) -> None:
    for number in range(3):
        finished(tmp_path / str(number), [{**answer(0, right=False, nfe=2), "token_ids": []}], summary=False)
    assert write_report(read_runs(tmp_path), tmp_path / "out", "t").images.keys() == {"accuracy", "nfe"}


def test_the_heat_map_is_the_share_that_is_revealed_by_then() -> None:
    shares = plots.revealed_by([[1, 2, 0, 0], [2, 1, 0], [1, 3]])
    third = 1 / 3
    np.testing.assert_allclose(shares, [[2 * third, third], [1, 2 * third], [1, 1]])
    with_hole = plots.revealed_by([[1, 0, 2]])
    np.testing.assert_array_equal(with_hole, [[1, np.nan, 0], [1, np.nan, 1]])


def test_the_fast_end_has_a_panel_where_runs_crowd_there() -> None:
    assert plots.crowded([(1.0, 1.0), (5.0, 0.9), (5.1, 0.9), (5.3, 0.8)]) == 5.0
    assert plots.crowded([(1.0, 1.0), (5.0, 0.9), (5.3, 0.8)]) is None
    assert plots.crowded([(5.0, 1.0), (5.1, 0.9), (5.3, 0.8)]) is None


def test_runs_in_one_place_are_all_on_the_front_and_all_seen(tmp_path: Path) -> None:
    for name in ("dual_cache", "klass", "basic"):
        for bar, right in (("0.5", 1), ("0.9", 2)):
            rows = [answer(number, right=number < right, nfe=2 + right) for number in range(2)]
            finished(tmp_path / f"{name}-{bar}", rows, f"algorithm={name}", f"sampler.threshold={bar}")
    runs = read_runs(tmp_path)
    assert len(on_front(runs)) == len(runs) == 6
    axes = Figure().subplots()
    plots.draw_runs(axes, runs, told=10.0)
    sizes = [line.get_markersize() for line in axes.lines if line.get_marker() in plots.MARKERS and line.get_label()]
    assert len(set(sizes)) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(text.get_text() for text in axes.texts) == ["0.5", "0.9"]
    assert "algorithm=klass, by sampler.threshold" in axes.get_legend_handles_labels()[1]


def test_many_runs_and_long_answers_are_drawn(tmp_path: Path) -> None:
    for number in range(plots.PANELS + 2):
        rows = [answer(0, right=True, nfe=300, step_map=list(range(1, 301)))]
        finished(tmp_path / f"{number:02}", rows, f"algorithm=klass sampler.threshold=0.{number:02}")
    written = write_report(read_runs(tmp_path), tmp_path / "out", "t")
    assert f"The first {plots.PANELS} runs." in written.page.read_text()


def test_what_cannot_be_had_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="add runs=<folder>"):
        make("logger=none")
    with pytest.raises(RunError, match="no such folder"):
        make("runs=nowhere", "logger=none")
    sweep(tmp_path / "runs")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="output=<folder>"):
        make(f"runs={tmp_path / 'runs'}", f"output={tmp_path / 'file' / 'out'}", "logger=none")


def test_a_missing_extra_is_named_with_its_command(tmp_path: Path) -> None:
    program = "import sys; sys.modules['matplotlib'] = None; from dlm.report.__main__ import main; main()"
    done = running.run([sys.executable, "-c", program, f"runs={sweep(tmp_path)}", "logger=none"], tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "MissingExtraError: python -m dlm.report needs the package 'matplotlib': pip install 'dlm[report]'\n"
    )


def test_help_and_config_are_quick_and_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from dlm.report.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    print('heavy:', sorted({'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules)))"
    )
    for argument in ("--help", "--cfg=job"):
        done = running.run([sys.executable, "-c", program, argument, "runs=x"], tmp_path)
        assert "heavy: []" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_the_report_is_logged_offline_by_default(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "runs")
    done = running.run(running.python("dlm.report", f"runs={runs}"), tmp_path, WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    (offline,) = (runs / "report" / "wandb").glob("offline-run-*")
    logged = {path.name.split("_")[0] for path in (offline / "files" / "media").rglob("*") if path.is_file()}
    assert logged == {"accuracy", "nfe", "reveal", "page", "table"}
    assert list(offline.glob("*.wandb"))
    again = running.run(running.python("dlm.report", f"runs={runs}", "logger=csv"), tmp_path)
    assert again.returncode == 0, again.stderr
    assert "report/front_area" in (runs / "report" / "csv" / "metrics.csv").read_text()
