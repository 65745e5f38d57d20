"""The two programs that are timed, given one case: ours with all canvases packed, the reference prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlm.bench.reference import Outcome, ReferenceModel, Settings, generate
from dlm.bench.stopwatch import Stopwatch
from dlm.bench.workloads import Case, Forward
from dlm.decoding.decoder import Decoder, DecoderOptions, StepReport
from dlm.decoding.engines import ENGINES
from dlm.decoding.request import Completion, Request, SamplingParams
from dlm.decoding.samplers import Fixed
from dlm.errors import RunError

CACHES = {"full": "none", "prefix_cache": "prefix", "dual_cache": "dual"}
"""What the reference calls each engine."""


def decoder_options(case: Case) -> DecoderOptions:
    """Room for every canvas of the case at once."""
    positions = sum(len(prompt) + case.gen_length for prompt in case.prompts)
    return DecoderOptions(max_num_seqs=case.batch, max_num_batched_tokens=positions, arena_tokens=positions)


def requests(case: Case) -> list[Request]:
    """One request a prompt: greedy, the fixed schedule, no early stop, ended after the blocks that are measured."""
    params = SamplingParams(
        gen_length=case.gen_length,
        block_length=case.block_length,
        steps=case.steps,
        temperature=0.0,
        ignore_eos=True,
        seed=0,
    )
    return [
        Request(str(index), prompt, params, ENGINES[case.engine](), Fixed(), stop_after(case.blocks))
        for index, prompt in enumerate(case.prompts)
    ]


def stop_after(blocks: int) -> Callable[[Sequence[int]], bool]:
    """Asked once for each block that is done; ends the answer at the last one to decode."""
    done = 0

    def should_stop(_: Sequence[int]) -> bool:
        nonlocal done
        done += 1
        return done == blocks

    return should_stop


def decode(decoder: Decoder, case: Case, now: Stopwatch) -> tuple[float, list[Completion], list[StepReport]]:
    """Ours: seconds, completions in the order of the prompts, and what each forward held."""
    asked = requests(case)
    reports: list[StepReport] = []
    begun = now()
    completions = list(decoder.run(asked, on_step=reports.append))
    seconds = now() - begun
    return seconds, sorted(completions, key=lambda completion: int(completion.request_id)), reports


def decode_reference(
    model: ReferenceModel, case: Case, prompts: Sequence[Sequence[int]], mask_id: int, now: Stopwatch
) -> tuple[float, list[Outcome]]:
    """The reference on some of the case's prompts: seconds and what came out for each."""
    settings = Settings(
        mask_id=mask_id,
        gen_length=case.gen_length,
        block_length=case.block_length,
        steps=case.steps,
        cache=CACHES[case.engine],
        blocks=case.blocks,
    )
    begun = now()
    outcomes = [generate(model, prompt, settings) for prompt in prompts]
    return now() - begun, outcomes


def check_forwards(
    case: Case, completions: Sequence[Completion], reports: Sequence[StepReport], outcomes: Sequence[Outcome]
) -> None:
    """Raise `RunError` unless both sides made exactly the forwards that the ceiling is computed from."""
    planned: list[Forward] = case.packed_forwards()
    if [report.num_rows for report in reports] != [forward.rows for forward in planned]:
        raise RunError(
            f"our forwards held {[r.num_rows for r in reports]} rows, the schedule says otherwise: {planned}"
        )
    for prompt, completion, outcome in zip(case.prompts, completions, outcomes, strict=True):
        expected = [rows for rows, _, _ in case.windows(len(prompt))]
        if (completion.nfe, completion.positions) != (len(expected), sum(expected)):
            raise RunError(
                f"ours took {completion.nfe} forwards and {completion.positions} positions for prompt "
                f"{completion.request_id}, the schedule has {len(expected)} and {sum(expected)}"
            )
        if list(outcome.forward_tokens) != expected:
            raise RunError(f"the reference fed {outcome.forward_tokens}, the schedule says {expected}")


def same_tokens(case: Case, completions: Sequence[Completion], outcomes: Sequence[Outcome]) -> float:
    """Share of the decoded tokens that are equal on both sides."""
    decoded = case.blocks * case.block_length
    pairs = [
        pair
        for completion, outcome in zip(completions, outcomes, strict=True)
        for pair in zip(completion.canvas_ids[:decoded], outcome.canvas_ids[:decoded], strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)
