"""A small run of `tests.fuzz_checkpoints`, in a process of its own because it changes its folder and its alarms."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_hostile_checkpoints_load_or_are_refused() -> None:
    command = [sys.executable, "-m", "tests.fuzz_checkpoints", "count=390", "seed=7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = re.search(r"^all +390 inputs, +(\d+) % pass the first parse$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert int(found[1]) >= 30
