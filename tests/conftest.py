"""One thread a process, files that leave nothing to the next, and a closing table of the golden vectors."""

from __future__ import annotations

import asyncio
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of tests that share the cores do not spin

from collections import Counter
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("dlm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dlm")  # no test hangs on how fast the machine is
pytest.register_assert_rewrite("tests.vectors")


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Files share a process in an order that nobody chose: none may see another's variables (W&B and Lightning
    set some) or run inside another's event loop (playwright's)."""
    with mock.patch.dict(os.environ):
        yield
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that at the end no process waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    margins: list[str] = []
    for outcome in ("passed", "failed", "xfailed"):
        for report in terminalreporter.getreports(outcome):
            if "test_goldens.py::test_decode" in report.nodeid:
                folder, algorithm, case, company = report.nodeid.partition("[")[2].rstrip("]").split("|")
                margin = dict(report.user_properties).get("margin")
                if margin is not None:
                    margins.append(f"excused: {case} {company}, {margin}")
                reason = getattr(report, "wasxfail", "") or (outcome if margin is None else "excused")
                counts[folder, algorithm, "float64" if company == "float64" else "float32", reason] += 1
    if counts:
        terminalreporter.section("golden vectors")
        for (folder, algorithm, dtype, outcome), count in sorted(counts.items()):
            terminalreporter.write_line(f"{folder:16} {algorithm:28} {dtype} {count:4} {outcome}")
        for line in sorted(margins):
            terminalreporter.write_line(line)
