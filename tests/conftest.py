"""One thread a process, and a closing table of the golden vectors by folder and algorithm."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    for outcome in ("passed", "failed", "xfailed"):
        for report in terminalreporter.getreports(outcome):
            if "test_goldens.py::test_decode" in report.nodeid:
                folder, algorithm, *_ = report.nodeid.partition("[")[2].split("|")
                reason = getattr(report, "wasxfail", "") or outcome
                counts[folder, algorithm, reason] += 1
    if counts:
        terminalreporter.section("golden vectors")
        for (folder, algorithm, outcome), count in sorted(counts.items()):
            terminalreporter.write_line(f"{folder:16} {algorithm:28} {count:4} {outcome}")
