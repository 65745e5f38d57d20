"""One row of the table: measurements and derived figures. Independent of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlm.bench.bounds.ceiling import Seconds
from dlm.bench.bounds.floor import floor
from dlm.bench.workloads import Case


@dataclass(frozen=True)
class Against:
    """The reference on the same prompts and schedule.

    Attributes:
        seconds: median over the rounds.
        forwards: model calls.
        positions: fed to them.
        same_tokens: share of the decoded tokens that are equal on both sides; random weights have near-ties that
            rounding decides.
        ideal, reference_ideal: ideal seconds by part, ours and the reference's.
    """

    seconds: float
    forwards: int
    positions: int
    same_tokens: float
    ideal: Seconds
    reference_ideal: Seconds

    @property
    def ceiling(self) -> float:
        """How many times faster than the reference ours could be."""
        return self.reference_ideal.total / self.ideal.total


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        case: what was decoded.
        rounds: number of rounds.
        seconds: median over the rounds.
        forwards: model calls, each over all canvases.
        nfe: mean forwards per canvas.
        positions: recomputed.
        tokens: decided.
        memory: peak bytes above the weights: arena, logits, activations; None if unknown.
        costs: operations and bytes of each forward.
        peak, bandwidth: operations per second of a large matmul, and bytes per second; the best of the whole run.
        against: the reference, if there is one.
        profile: where our time goes, if requested.
    """

    case: Case
    rounds: int
    seconds: float
    forwards: int
    nfe: float
    positions: int
    tokens: int
    memory: int | None
    costs: tuple[tuple[float, float], ...]
    peak: float
    bandwidth: float
    against: Against | None = None
    profile: dict[str, float] | None = None

    @property
    def floor(self) -> float:
        """Seconds at the machine's peak."""
        return floor(self.costs, self.peak, self.bandwidth)

    @property
    def peak_share(self) -> float:
        """Share of the matmul peak that the whole decoder reaches."""
        return sum(operations for operations, _ in self.costs) / self.seconds / self.peak

    @property
    def floor_share(self) -> float:
        """The floor's seconds over ours."""
        return self.floor / self.seconds

    @property
    def ratio(self) -> float | None:
        """Our speedup over the reference."""
        return self.against.seconds / self.seconds if self.against else None

    @property
    def share(self) -> float | None:
        """Share of the ceiling reached."""
        return self.against.seconds / self.seconds / self.against.ceiling if self.against else None


def row_values(row: Row) -> dict[str, Any]:
    """One row as plain values; seconds, bytes, and rates per second."""
    case = row.case
    return {
        "size": case.size,
        "engine": case.engine,
        "sampler": case.sampler,
        "batch": case.batch,
        "dtype": case.dtype,
        "prompt_lengths": [len(prompt) for prompt in case.prompts],
        "gen_length": case.gen_length,
        "rounds": row.rounds,
        "seconds": row.seconds,
        "forwards": row.forwards,
        "nfe": row.nfe,
        "positions": row.positions,
        "tokens": row.tokens,
        "seconds_per_forward": row.seconds / row.forwards,
        "forwards_per_second": row.forwards / row.seconds,
        "positions_per_second": row.positions / row.seconds,
        "tokens_per_second": row.tokens / row.seconds,
        "peak_memory_bytes": row.memory,
        "floor_seconds": row.floor,
        "floor_share": row.floor_share,
        "matmul_peak_share": row.peak_share,
        "reference": against_values(row, row.against) if row.against else None,
        "profile": row.profile,
    }


def against_values(row: Row, other: Against) -> dict[str, Any]:
    """The reference's part of a row."""

    def parts(seconds: Seconds) -> dict[str, float]:
        return {**vars(seconds), "total": seconds.total}

    return {
        "seconds": other.seconds,
        "forwards": other.forwards,
        "nfe": other.forwards / row.case.batch,
        "positions": other.positions,
        "forwards_per_second": other.forwards / other.seconds,
        "positions_per_second": other.positions / other.seconds,
        "tokens_per_second": row.tokens / other.seconds,
        "same_tokens": other.same_tokens,
        "ratio": row.ratio,
        "ceiling": other.ceiling,
        "share": row.share,
        "ideal": parts(other.ideal),
        "reference_ideal": parts(other.reference_ideal),
    }
