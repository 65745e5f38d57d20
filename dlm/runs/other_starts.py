"""Whether another start works in the same run folder: nothing is lost by it, but prompts are decoded twice."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dlm.distributed.heartbeat import SILENCE, STATUS, WorkerStatus, read_status
from dlm.distributed.processes import is_alive, machine


class OtherStarts:
    """Tells once of each other attempt that has a process at work.

    Args:
        claims: the folder in which each attempt has its own.
        attempt: this one.
    """

    def __init__(self, claims: Path, attempt: str) -> None:
        self.claims = claims
        self._settled = {attempt}

    def tell(self) -> None:
        """Look at the attempts that were neither told of nor over before. Never raises: the heart calls it."""
        try:
            for folder in self.claims.iterdir():
                if folder.name not in self._settled:
                    self._look_at(folder)
        except OSError:  # a network file system is between two versions; the next beat will see
            return

    def _look_at(self, folder: Path) -> None:
        statuses = [one for path in sorted(folder.glob(f"*{STATUS}")) if (one := at_work(path)) is not None]
        if statuses:
            one = statuses[0]
            print(
                f"another start works in this run folder: attempt {folder.name}, process {one.pid} on "
                f"{one.machine.partition('/')[0]}. Both decode the prompts without an answer, and the first answer "
                "counts; stop one of them, or give it a run_dir of its own",
                file=sys.stderr,
                flush=True,
            )
        if statuses or any(folder.glob(f"*{STATUS}")):
            self._settled.add(folder.name)


def at_work(path: Path) -> WorkerStatus | None:
    """What the process that wrote a status file says, where it lives; on another machine, where it wrote of late."""
    status = read_status(path.parent, path.name.removesuffix(STATUS))
    if status is None or status.ended:
        return None
    if status.machine == machine():
        return status if is_alive(status.pid, status.birth) else None
    try:
        return status if time.time() - path.stat().st_mtime < SILENCE else None
    except OSError:
        return None
