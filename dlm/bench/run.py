"""The measurement: for each row of the table our decoder and the reference by turns, and the machine's rates between.

Both sides are given the same weights, prompts and schedule. That each made exactly the forwards that the ceiling
assumes, equal in number and positions, is checked in every round.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dlm.bench.ceiling import floor, ideal
from dlm.bench.config import BenchConfig, WorkloadConfig
from dlm.bench.machine import Machine, read_machine
from dlm.bench.profile import profile
from dlm.bench.rates import Meter, packed_shape
from dlm.bench.reference import ReferenceModel
from dlm.bench.report import name_of, render, to_json
from dlm.bench.row import Row
from dlm.bench.sides import check_forwards, decode, decode_reference, decoder_options, same_tokens
from dlm.bench.stopwatch import Stopwatch
from dlm.bench.workloads import Case, cases
from dlm.decoding.decoder import Decoder
from dlm.errors import ConfigError
from dlm.models.loading import DTYPES, Checkpoint, random_checkpoint


def run(bench: BenchConfig) -> int:
    """Measure every row, print the table, write the JSON; returns the exit code."""
    device = choose_device(bench.device, bench.clock)
    work = bench.workload
    now = Stopwatch(device, bench.clock)
    facts = read_machine(now, {name: DTYPES[name] for name in work.dtypes})
    rows: list[Row] = []
    parameters = 0
    for dtype in work.dtypes:
        checkpoint = random_checkpoint(work.size, seed=work.seed, dtype=dtype, device=device)
        parameters = sum(weight.numel() for weight in checkpoint.backbone.layers.parameters())
        todo = [case for case in cases(work, checkpoint.backbone.config.vocab_size) if case.dtype == dtype]
        check_length(todo, checkpoint)
        for case in todo:
            begun = time.perf_counter()
            rows.append(measure(case, checkpoint, work, facts, now, profiled=bench.profile))
            print(progress(rows[-1], time.perf_counter() - begun), file=sys.stderr, flush=True)
    render(rows, facts, work, parameters)
    if bench.json is not None:
        Path(bench.json).write_text(to_json(rows, facts, work, parameters), encoding="utf-8")
    return 0


def progress(row: Row, seconds: float) -> str:
    """A finished row, for those who wait."""
    return f"{name_of(row)}: {row.ratio:.2f} times, {row.share:.0%} of {row.ceiling:.2f} (took {seconds:.0f} s)"


def choose_device(name: str, clock: str) -> torch.device:
    """The device that `device=` asks for; raises `ConfigError` when there is none, or the clock cannot see it."""
    cuda = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ConfigError("device=cuda: torch sees no CUDA device; use device=cpu or auto")
    if cuda and clock == "cpu":
        raise ConfigError("clock=cpu does not see the work of a CUDA device; use clock=wall, or device=cpu")
    return torch.device("cuda" if cuda else "cpu")


def check_length(todo: Sequence[Case], checkpoint: Checkpoint) -> None:
    """Raise `ConfigError` when a canvas is longer than the model allows."""
    longest = max(len(prompt) + case.gen_length for case in todo for prompt in case.prompts)
    if longest > checkpoint.max_positions:
        raise ConfigError(
            f"workload.prompt_length and gen_length make a canvas of {longest} positions, the model of workload.size "
            f"has {checkpoint.max_positions}; shorten one of them"
        )


def measure(
    case: Case, checkpoint: Checkpoint, work: WorkloadConfig, facts: Machine, now: Stopwatch, *, profiled: bool
) -> Row:
    """One row. A round is half of the prompts with the reference, all with ours, the other half with the reference, and
    the rates: so that a machine that slows down slows both sides down."""
    backbone = checkpoint.backbone
    packed, single = case.packed_forwards(), case.reference_forwards()
    decoder = Decoder(backbone, checkpoint.special, decoder_options(case))
    reference = ReferenceModel(backbone)
    meter = Meter(backbone, reference, packed, single)
    ours: list[float] = []
    theirs: list[float] = []
    alike = 0.0
    half, mask_id = case.batch // 2, checkpoint.special.mask_id
    begun = time.perf_counter()
    while not ours or (len(ours) < work.repetitions and time.perf_counter() - begun < work.row_seconds):
        before, first = decode_reference(reference, case, case.prompts[:half], mask_id, now)
        seconds, completions, reports = decode(decoder, case, now)
        after, second = decode_reference(reference, case, case.prompts[half:], mask_id, now)
        ours.append(seconds)
        theirs.append(before + after)
        outcomes = first + second
        meter.sample(now)
        check_forwards(case, completions, reports, outcomes)
        alike = same_tokens(case, completions, outcomes)
    return Row(
        case=case,
        rounds=len(ours),
        seconds=statistics.median(ours),
        reference_seconds=statistics.median(theirs),
        forwards=len(packed),
        reference_forwards=len(single),
        positions=sum(forward.rows for forward in packed),
        same_tokens=alike,
        ideal=ideal(packed, meter.ours.shape, meter.ours),
        reference_ideal=ideal(single, meter.reference.shape, meter.reference),
        floor=floor(packed, packed_shape(backbone), facts.matmul_flops[case.dtype], facts.memory_bytes),
        profile=profile(decoder, case, now) if profiled else None,
    )
