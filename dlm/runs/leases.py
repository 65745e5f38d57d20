"""Who decodes what: a list of claims that all processes of an attempt read, taken one by one as they are needed.

A claim is taken by creating a file that must not exist: no process group, so that DDP, torchrun and job arrays do the
same, a slow process takes fewer, and none waits for another. What a dead process had taken is missing when the run is
merged, and done by the next attempt; a task of a job array that is asked to stop gives back what it has not answered,
and one that is started again goes on with what it had taken.

Claims are taken when the decoder asks for its next prompt, so that it never runs dry between two of them; early ones
are large, the last ones hold a single prompt, so that all processes end at about the same time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlm.errors import RunError
from dlm.runs.run_folder import damaged, read_json
from dlm.runs.whole_files import publish


@dataclass(frozen=True)
class LeasePlan:
    """What is to be done in an attempt.

    Attributes:
        claims: lists of prompt numbers (positions in the run's index), in the order in which they are to be taken.
        world: processes that share them.
    """

    claims: list[list[int]]
    world: int

    @property
    def num_prompts(self) -> int:
        return sum(map(len, self.claims))

    def fair_share(self) -> int:
        """Prompts for each process, at least 1: nobody should hold more of a small plan than this."""
        return max(1, -(-self.num_prompts // self.world))


def divide(costs: Sequence[tuple[float, int]], world: int, largest: int) -> list[list[int]]:
    """Cut the prompts into claims, costly ones first.

    Each claim takes a share 1 / (2 * world) of what remains, at most `largest` prompts: guided self-scheduling
    (Polychronopoulos and Kuck, 1987).

    Args:
        costs: `(cost, number)` of each prompt.
        world: processes; a single one gets everything in one claim.
        largest: prompts in the largest claim.
    """
    numbers = [number for _, number in sorted(costs, key=lambda pair: (-pair[0], pair[1]))]
    if world == 1:
        return [numbers] if numbers else []
    claims = []
    while numbers:
        size = max(1, min(largest, len(numbers) // (2 * world)))
        claims.append(numbers[:size])
        numbers = numbers[size:]
    return claims


class Leases:
    """The claims of one attempt, as one process sees them.

    Args:
        folder: the attempt's folder inside `claims/`.
        worker: this process's name, left in the files of the claims that it takes.
        earlier: names that this process had before it was started again; what they took is its own.
    """

    def __init__(self, folder: Path, worker: str, earlier: Collection[str] = ()) -> None:
        self.folder, self.worker, self.earlier = folder, worker, earlier
        self._taken: set[int] = set()

    def agree(self, plan: LeasePlan) -> LeasePlan:
        """The plan of this attempt: `plan` if this process is the first, else what the first one wrote.

        Raises:
            RunError: it is of another number of processes, or damaged.
        """
        path = self.folder / "plan.json"
        publish(path, json.dumps({"created": time.time_ns(), "world": plan.world, "claims": plan.claims}))
        written = read_json(path)
        claims = written.get("claims") if isinstance(written, dict) else None
        if not isinstance(claims, list) or not all(map(_is_claim, claims)) or not isinstance(written.get("world"), int):
            raise damaged(path, "it is no plan")
        if written["world"] != plan.world:
            raise RunError(
                f"{path} was made for {written['world']} processes and this is one of {plan.world}: start a new "
                "attempt (another DLM_ATTEMPT), or the same number of processes"
            )
        return LeasePlan(claims, written["world"])

    def take(self, plan: LeasePlan) -> Iterator[int]:
        """Prompt numbers for this process; each claim is taken when its first prompt is asked for.

        The list is gone through until nothing in it is free: others may have given back what was passed over.
        """
        found = True
        while found:
            found = False
            for number, claim in enumerate(plan.claims):
                if number not in self._taken and self._take(number):
                    found = True
                    self._taken.add(number)
                    yield from claim

    def left(self, plan: LeasePlan) -> bool:
        """Whether there is anything that this process could take."""
        return any(
            claim and (not self._path(number).exists() or self._inherited(number))
            for number, claim in enumerate(plan.claims)
        )

    def give_back(self, plan: LeasePlan, answered: Collection[int]) -> None:
        """Let others take the claims of this process that hold prompts other than `answered`."""
        for number in self._taken:
            if not set(plan.claims[number]) <= set(answered):
                self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / str(number)

    def _inherited(self, number: int) -> bool:
        if not self.earlier:
            return False
        try:
            return self._path(number).read_text(encoding="utf-8", errors="replace") in self.earlier
        except FileNotFoundError:
            return False

    def _take(self, number: int) -> bool:
        path = self._path(number)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(self.worker)
        except FileExistsError:
            return self._inherited(number)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; make room, then resume") from error
        return True


def _is_claim(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(number, int) and number >= 0 for number in value)
