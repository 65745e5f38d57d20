"""Twenty seconds of what `python -m tests.soak` does for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_mixed_load_with_clients_that_leave_or_are_wrong_harms_nobody(tmp_path: Path) -> None:
    report = soak(20.0, 12, 1, tmp_path, deadlines=False)
    assert report.wrong == [], "\n".join(report.wrong[:5])
    assert report.server_errors == 0
    assert set(report.after.gauges.values()) == {0}
    assert report.peak["dlm_sequences_running"] == 8
    assert report.after.files <= report.before.files + 4
    assert report.log == []
    assert report.code == 0
    kinds = {kind for kind, _ in report.statuses}
    assert {"whole", "streamed", "polled", "refused", "leaves_a_stream", "leaves_while_waiting"} <= kinds
    assert report.statuses["whole", "200"] > 10
