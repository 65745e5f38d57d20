"""What it costs that a row's bits do not depend on its batch.

    python -m tests.invariance_cost rounds=3 [key=value ...]

Runs `python -m dlm.bench` in two processes by turns: as it is, and with products, activations and attention as the
libraries make them (no strict mode of MKL either). Prints each row's time as a multiple of the other's, from the least
of all rounds. What follows `rounds=` goes to the bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WORKLOAD = ("workload.engines=[full,dual_cache,block_causal]", "workload.reference=false", "workload.row_seconds=6")
FREE = {"MKL_CBWR": "AUTO"}


def main() -> int:
    rounds, *rest = sys.argv[1:] or ["rounds=3"]
    times: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(int(rounds.removeprefix("rounds="))):
            for free in (False, True):
                for case, seconds in bench(Path(folder) / "bench.json", free, rest).items():
                    times.setdefault((case, free), []).append(seconds)
    for case in dict.fromkeys(case for case, _ in times):
        ours, theirs = min(times[case, False]), min(times[case, True])
        print(f"{case}: {1e3 * ours:,.1f} ms a forward, {ours / theirs:.2f} times {1e3 * theirs:,.1f} ms")
    return 0


def bench(output: Path, free: bool, rest: list[str]) -> dict[str, float]:
    """Seconds a forward by row."""
    words = [*WORKLOAD, *rest, f"json={output}", *(["workload.deterministic=false"] if free else [])]
    env = {**os.environ, **(FREE if free else {})}
    run = [sys.executable, "-m", "dlm.bench", *words]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = json.loads(output.read_text())["rows"]
    return {f"{row['engine']}, batch {row['batch']}, {row['dtype']}": row["seconds"] / row["forwards"] for row in rows}


if __name__ == "__main__":
    sys.exit(main())
