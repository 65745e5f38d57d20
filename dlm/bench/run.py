"""The measurement: for each table row, our decoder and the reference in turn, with the machine's rates in between.

Both sides get the same weights, prompts and schedule. Every round checks that each made exactly the forwards that floor
and ceiling assume.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from dlm.bench.bounds.ceiling import ideal
from dlm.bench.bounds.floor import BodyCost, costs
from dlm.bench.config import BenchConfig, QualityConfig, SpeedConfig
from dlm.bench.machine.facts import Machine, Yardstick
from dlm.bench.machine.memory import PeakMemory
from dlm.bench.machine.profile import profile
from dlm.bench.machine.rates import Meter
from dlm.bench.machine.stopwatch import Stopwatch
from dlm.bench.quality import run_quality
from dlm.bench.reference import PROGRAMS, ReferenceModel
from dlm.bench.report import render, to_json
from dlm.bench.row import Against, Row
from dlm.bench.sides import (
    Planned,
    check_ours,
    check_reference,
    decode,
    decode_reference,
    decoder_options,
    plan,
    same_tokens,
    silence_mask,
)
from dlm.bench.workloads import Case, cases
from dlm.decoding.decoder import Decoder
from dlm.errors import ConfigError
from dlm.models.io.loading import DTYPES, Checkpoint, random_checkpoint
from dlm.models.sizes import SIZES


def run(bench: BenchConfig) -> int:
    """Measure every row, print the table, write the JSON; returns the exit code."""
    device = choose_device(bench.device, bench.clock)
    if isinstance(bench.workload, QualityConfig):
        values = run_quality(bench.workload, device)
    else:
        values = run_speed(bench.workload, Stopwatch(device, bench.clock), profiled=bench.profile)
    if bench.json is not None:
        Path(bench.json).write_text(values, encoding="utf-8")
    return 0


def choose_device(name: str, clock: str) -> torch.device:
    """The device for `device=`; raises `ConfigError` if it is missing, or the clock cannot measure it."""
    cuda = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ConfigError("device=cuda: torch sees no CUDA device; use device=cpu or auto")
    if cuda and clock == "cpu":
        raise ConfigError("clock=cpu does not measure work on a CUDA device; use clock=wall, or device=cpu")
    return torch.device("cuda" if cuda else "cpu")


def run_speed(work: SpeedConfig, now: Stopwatch, *, profiled: bool) -> str:
    """Time every row, print the tables and return them as JSON."""
    yardstick = Yardstick(now, {name: DTYPES[name] for name in work.dtypes})
    rows: list[Row] = []
    parameters: dict[str, int] = {}
    checkpoint, loaded = None, None
    for case in cases(work, {size: config.vocab_size for size, config in SIZES.items()}):
        if loaded != (case.size, case.dtype) or checkpoint is None:
            checkpoint = None  # freed before the next one is made
            checkpoint = random_checkpoint(case.size, seed=work.seed, dtype=case.dtype, device=now.device)
            silence_mask(checkpoint)
            loaded = case.size, case.dtype
            parameters[case.size] = sum(weight.numel() for weight in checkpoint.backbone.layers.parameters())
        begun = time.perf_counter()
        yardstick.sample()
        rows.append(measure(case, checkpoint, work, yardstick.read(), now, profiled=profiled))
        print(progress(rows[-1], time.perf_counter() - begun), file=sys.stderr, flush=True)
    yardstick.sample()
    facts = yardstick.read()
    rows = [replace(row, peak=facts.matmul_flops[row.case.dtype], bandwidth=facts.memory_bytes) for row in rows]
    render(rows, facts, work, parameters)
    return to_json(rows, facts, work, parameters)


def progress(row: Row, seconds: float) -> str:
    """The progress line of a finished row."""
    compared = f"{row.ratio:.2f} times the reference, {row.share:.0%} of the ceiling; " if row.against else ""
    return f"{row.case}: {compared}{1e3 * row.seconds / row.forwards:,.1f} ms a forward (took {seconds:.0f} s)"


def measure(
    case: Case, checkpoint: Checkpoint, work: SpeedConfig, facts: Machine, now: Stopwatch, *, profiled: bool
) -> Row:
    """One row: a warm-up run of ours that also measures memory, then the rounds."""
    backbone, mask_id = checkpoint.backbone, checkpoint.special.mask_id
    planned = plan(case, backbone.config, mask_id, reference=work.reference)
    memory = PeakMemory(now.device)
    decoder = Decoder(backbone, checkpoint.special, decoder_options(case, work.deterministic))
    decode(decoder, case, now)
    peak_memory = memory.read()
    if planned.outcomes is None:
        ours, against = alone(case, decoder, planned, work, now), None
    else:
        ours, against = by_turns(case, decoder, planned, work, now)
    return Row(
        case=case,
        rounds=len(ours),
        seconds=statistics.median(ours),
        forwards=len(planned.ours),
        nfe=statistics.mean(len(lane) for lane in planned.lanes),
        positions=sum(forward.rows for forward in planned.ours),
        tokens=planned.tokens,
        memory=peak_memory,
        costs=costs(planned.ours, BodyCost.of(backbone.config, backbone.dtype.itemsize)),
        peak=facts.matmul_flops[case.dtype],
        bandwidth=facts.memory_bytes,
        against=against,
        profile=profile(decoder, case, now) if profiled else None,
    )


def more(done: int, begun: float, work: SpeedConfig) -> bool:
    """Whether to run another round of a row; the first always runs."""
    return not done or (done < work.repetitions and time.perf_counter() - begun < work.row_seconds)


def alone(case: Case, decoder: Decoder, planned: Planned, work: SpeedConfig, now: Stopwatch) -> list[float]:
    """Seconds of each round of ours."""
    ours: list[float] = []
    begun = time.perf_counter()
    while more(len(ours), begun, work):
        seconds, completions, reports = decode(decoder, case, now)
        check_ours(planned, completions, reports)
        ours.append(seconds)
    return ours


def by_turns(
    case: Case, decoder: Decoder, planned: Planned, work: SpeedConfig, now: Stopwatch
) -> tuple[list[float], Against]:
    """Seconds of each round of ours, and the reference's row.

    A round decodes half of the prompts with the reference, all with ours, the other half with the reference, and
    samples the rates, so that a slowdown of the machine affects both sides.
    """
    backbone, mask_id = decoder.backbone, decoder.special.mask_id
    reference, single = ReferenceModel(backbone), planned.theirs
    meter = Meter(backbone, reference, PROGRAMS[case.engine], planned.ours, single)
    ours: list[float] = []
    theirs: list[float] = []
    alike, half = 0.0, case.batch // 2
    begun = time.perf_counter()
    while more(len(ours), begun, work):
        before, first = decode_reference(reference, case, case.prompts[:half], mask_id, now)
        seconds, completions, reports = decode(decoder, case, now)
        after, second = decode_reference(reference, case, case.prompts[half:], mask_id, now)
        ours.append(seconds)
        theirs.append(before + after)
        meter.sample(now)
        check_ours(planned, completions, reports)
        check_reference(planned, first + second)
        alike = same_tokens(completions, first + second, mask_id)
    return ours, Against(
        seconds=statistics.median(theirs),
        forwards=len(single),
        positions=sum(forward.rows for forward in single),
        same_tokens=alike,
        ideal=ideal(planned.ours, meter.ours.shape, meter.ours),
        reference_ideal=ideal(single, meter.reference.shape, meter.reference),
    )
