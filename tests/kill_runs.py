"""Kill a two-process run when a random number of its rows is written and resume it, many times:

    python -m tests.kill_runs 10

Each trial kills rank 1, rank 0 or both with SIGKILL, and checks that no row is torn or repeated, that no exit code is 0
while something is missing, that no process is left after 10 s, and that the resumed result equals the undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import running

VICTIMS = ((1,), (0,), (0, 1))


@dataclass(frozen=True)
class Undisturbed:
    """What all trials share: where they happen, their arguments, and the answers of a run that nobody kills."""

    folder: Path
    arguments: list[str]
    answers: list[dict[str, Any]]


def undisturbed(folder: Path, count: int = 240) -> Undisturbed:
    """Make the run that nobody kills, of `count` prompts."""
    prompts = running.write_prompts(folder / "prompts.jsonl", count)
    arguments = [*running.TINY, f"data.path={prompts}", "decoder.max_num_seqs=8"]
    whole = folder / "whole"
    done = running.run(running.python("dlm.predict", *arguments, f"run_dir={whole}"), folder)
    assert done.returncode == 0, done.stderr
    return Undisturbed(folder, arguments, running.answers(whole))


def trial(whole: Undisturbed, victims: tuple[int, ...], rng: random.Random) -> str:
    """One kill and what follows; returns a line about it."""
    folder, arguments, expected = whole.folder, whole.arguments, whole.answers
    count = len(expected)
    run_dir = folder / f"killed-{rng.getrandbits(32):08x}"
    command = running.python("dlm.predict", *arguments, f"run_dir={run_dir}")
    with running.started([*command, "trainer=ddp", "trainer.devices=2"], folder) as process:
        running.wait_until(lambda: _started(run_dir), "decoding", process)
        enough = rng.randrange(count)
        running.wait_until(lambda: _written(run_dir) >= enough, f"{enough} rows", process)
        killed = [_kill(run_dir, rank) for rank in victims]
        code = running.finish(process).returncode
        running.wait_until(lambda: not running.processes_of(run_dir), f"the end of all after the kill of {victims}")

    rows = running.shard_rows(run_dir)
    repeated = [id for id, count in Counter(row["id"] for row in rows).items() if count > 1]
    assert not repeated, f"repeated {repeated}"
    by_id = {row["id"]: row for row in expected}
    for row in rows:
        row.pop("seconds")
        assert row == by_id[row["id"]], f"torn or wrong row {row}"
    assert code != 0 or len(rows) == count, f"exit code 0 with {count - len(rows)} missing"

    world = rng.choice(([], ["trainer=ddp", "trainer.devices=2"]))
    resumed = running.run([*command, *world], folder)
    assert resumed.returncode == 0, resumed.stderr
    assert running.answers(run_dir) == expected
    resumed_rows = len(running.shard_rows(run_dir))
    assert resumed_rows == count, f"{resumed_rows} rows after the resume"
    return f"killed {victims} (alive: {killed}): exit {code}, {len(rows)}/{count} kept, resumed on {2 if world else 1}"


def _statuses(run_dir: Path) -> dict[str, dict[str, object]]:
    return {
        path.name.split(".")[0]: json.loads(path.read_text()) for path in run_dir.glob("claims/*/rank*.status.json")
    }


def _written(run_dir: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (run_dir / "shards").glob("*.jsonl"))


def _started(run_dir: Path) -> bool:
    statuses = _statuses(run_dir)
    return len(statuses) == 2 and all(status["state"] != "starting" for status in statuses.values())


def _kill(run_dir: Path, rank: int) -> bool:
    try:
        os.kill(int(str(_statuses(run_dir)[f"rank{rank}"]["pid"])), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def main(trials: int, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole = undisturbed(Path(name))
        for number in range(trials):
            victims = VICTIMS[number % len(VICTIMS)]
            print(f"{number + 1}/{trials} {trial(whole, victims, rng)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())
