"""The two timed programs on one case: ours with all canvases packed, the reference prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dlm.bench.bounds.forwards import canvas_forwards, packed, reference_forwards, reference_outcomes
from dlm.bench.machine.stopwatch import Stopwatch
from dlm.bench.paced import SCHEDULE, sampler_for
from dlm.bench.reference import PROGRAMS, ReferenceModel, ReferenceOutcome, supports
from dlm.bench.workloads import Case, Forward
from dlm.decoding.decoder import Decoder
from dlm.decoding.engines import ENGINES
from dlm.decoding.options import DecoderOptions, StepReport
from dlm.decoding.params import SamplingParams
from dlm.decoding.request import Completion, Request
from dlm.errors import RunError
from dlm.models.architecture import BackboneConfig
from dlm.models.io.loading import Checkpoint


@dataclass(frozen=True)
class Planned:
    """The forwards that each side should make.

    Attributes:
        lanes: ours, for each canvas.
        ours: the same, packed as the decoder runs them.
        outcomes: the reference's outcome for each prompt; None without a reference.
    """

    lanes: tuple[tuple[Forward, ...], ...]
    ours: tuple[Forward, ...]
    outcomes: tuple[ReferenceOutcome, ...] | None

    @property
    def theirs(self) -> list[Forward]:
        """The reference's forwards."""
        return reference_forwards(self.outcomes or ())

    @property
    def tokens(self) -> int:
        """Tokens decided for all prompts."""
        return sum(forward.revealed for forward in self.ours)


def plan(case: Case, config: BackboneConfig, mask_id: int, *, reference: bool) -> Planned:
    """Plan both sides; the reference is used only for the bare schedule, on models that it can run."""
    lanes = tuple(tuple(canvas_forwards(request, case, mask_id, shifted=config.shifted)) for request in requests(case))
    compared = reference and case.engine in PROGRAMS and case.sampler == SCHEDULE and supports(config)
    outcomes = tuple(reference_outcomes(case, mask_id)) if compared else None
    return Planned(lanes, tuple(packed(lanes)), outcomes)


def decoder_options(case: Case, deterministic: bool | None = None) -> DecoderOptions:
    """Options with room for all canvases of the case at once."""
    size = case.block_length
    positions = sum(-(-(len(prompt) + case.gen_length) // size) * size for prompt in case.prompts)
    return DecoderOptions(
        max_num_seqs=case.batch,
        max_num_batched_tokens=positions,
        arena_tokens=positions,
        deterministic=deterministic,
    )


def requests(case: Case) -> list[Request]:
    """One request per prompt: greedy, on the schedule, no early stop, ending after the measured blocks."""
    params = SamplingParams(
        gen_length=case.gen_length,
        block_length=case.block_length,
        steps=case.steps,
        temperature=0.0,
        ignore_eos=True,
        seed=0,
    )
    sampler = sampler_for(case.sampler, case.engine, case.steps_per_block)
    return [
        Request(str(index), prompt, params, ENGINES[case.engine](), sampler, stop_after(case.blocks))
        for index, prompt in enumerate(case.prompts)
    ]


def stop_after(blocks: int) -> Callable[[Sequence[int]], bool]:
    """A `should_stop`, called once per finished block, that ends the answer after `blocks` of them."""
    done = 0

    def should_stop(_: Sequence[int]) -> bool:
        nonlocal done
        done += 1
        return done == blocks

    return should_stop


@torch.no_grad()
def silence_mask(checkpoint: Checkpoint) -> None:
    """Set the mask id's logit to 0, never the largest among a vocabulary of random ones: a position that proposed the
    mask would take another forward on one side only."""
    checkpoint.backbone.lm_head.weight[checkpoint.special.mask_id] = 0.0


def decode(decoder: Decoder, case: Case, now: Stopwatch) -> tuple[float, list[Completion], list[StepReport]]:
    """Run ours: seconds, completions in prompt order, and a report of each forward."""
    asked = requests(case)
    reports: list[StepReport] = []
    begun = now()
    completions = list(decoder.run(asked, on_step=reports.append))
    seconds = now() - begun
    return seconds, sorted(completions, key=lambda completion: int(completion.request_id)), reports


def decode_reference(
    model: ReferenceModel, case: Case, prompts: Sequence[Sequence[int]], mask_id: int, now: Stopwatch
) -> tuple[float, list[ReferenceOutcome]]:
    """Run the reference on some of the case's prompts: seconds and the outcome of each."""
    run = PROGRAMS[case.engine].run
    begun = now()
    outcomes = [run(model, prompt, case, mask_id) for prompt in prompts]
    return now() - begun, outcomes


def check_ours(planned: Planned, completions: Sequence[Completion], reports: Sequence[StepReport]) -> None:
    """Raise `RunError` unless ours made exactly the forwards planned."""
    refused = [completion.error for completion in completions if completion.error is not None]
    if refused:
        raise RunError(f"the decoder refused a bench prompt: {refused[0]}")
    expected = [(forward.rows, forward.revealed) for forward in planned.ours]
    made = [(report.num_rows, report.num_revealed) for report in reports]
    if made != expected:
        raise RunError(f"our forwards had (rows, reveals) {made}, but the schedule says {expected}")
    for lane, completion in zip(planned.lanes, completions, strict=True):
        wanted = len(lane), sum(forward.rows for forward in lane)
        if (completion.nfe, completion.positions) != wanted:
            raise RunError(
                f"ours took {completion.nfe} forwards and {completion.positions} positions for prompt "
                f"{completion.request_id}, but the schedule has {wanted[0]} and {wanted[1]}"
            )


def check_reference(planned: Planned, outcomes: Sequence[ReferenceOutcome]) -> None:
    """Raise `RunError` unless the reference made exactly the calls planned."""
    for expected, outcome in zip(planned.outcomes or (), outcomes, strict=True):
        if outcome.calls != expected.calls:
            raise RunError(f"the reference made {outcome.calls}, but the schedule says {expected.calls}")


def same_tokens(completions: Sequence[Completion], outcomes: Sequence[ReferenceOutcome], mask_id: int) -> float:
    """Share of our decided tokens that equal the reference's."""
    pairs = [
        pair
        for completion, outcome in zip(completions, outcomes, strict=True)
        for pair in zip(completion.canvas_ids, outcome.canvas_ids, strict=True)
        if pair[0] != mask_id
    ]
    return sum(a == b for a, b in pairs) / len(pairs)
