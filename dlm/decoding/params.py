"""Sampling parameters of one prompt, as plain values, and the range checks that engines and samplers share."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields

from dlm._quoting import quoted
from dlm.errors import RequestError

MAX_LENGTH = 8192
"""Upper bound of `gen_length` and `steps`."""

MAX_SAMPLES = 65536
"""Upper bound of `n`."""

MAX_WHOLE = 2**31 - 1
"""Upper bound of whole numbers without a natural one."""

MIN_TEMPERATURE = 1e-6
"""Smallest temperature above 0: dividing logits by a smaller one overflows, and 0 is what was meant."""


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is decoded, independent of engine and sampler.

    Attributes:
        gen_length: masked positions appended to the prompt, 1..8192.
        max_tokens: return at most this many tokens; None returns all of `gen_length`.
        steps: total steps of the schedule, 1..8192 (as in LLaDA). If it does not divide evenly, earlier blocks take the
            remainder. Samplers without a schedule ignore it, as in the reference programs.
        block_length: length of a semi-autoregressive block.
        align_blocks: start blocks at multiples of `block_length` (dInfer's `start_block_align`), so the first may hold
            the end of the prompt; otherwise they start at the end of the prompt.
        temperature: 1e-6..2, or 0 for the most probable token.
        top_k, top_p: filters applied before sampling; 0 and 1.0 keep everything. Ignored at temperature 0.
        cfg_scale: classifier-free guidance, 0..1000: logits = u + (cfg_scale + 1) (l - u).
        max_nfe: maximum number of forwards for this prompt; more positions are revealed than the sampler selects when
            the remaining budget requires it.
        initial_gen_length: start with this many masked positions and grow up to `gen_length` as the model needs
            (DAEDAL, arXiv 2508.00819; see `dlm.decoding.expansion`); 1..gen_length. None starts at `gen_length`. The
            next five apply only with it.
        expansion_factor: positions added at once, and masks that replace one, at least 2.
        eos_check_tokens: positions averaged for the end confidence, at least 1.
        eos_confidence_threshold: before decoding, grow while the end confidence is below this, 0..1.
        expand_eos_confidence_threshold: while decoding, insert masks while it is below this, 0..1.
        low_conf_threshold: insert only where the model's confidence in a mask is below this, 0..1.
        ignore_eos: decode the whole canvas instead of stopping after the block that ends the answer.
        eos_early_stop: stop inside a block once there is an end token with nothing undecided before it.
        logits_eos_inf: never choose the end-of-sequence token.
        confidence_eos_eot_inf: reveal positions that propose end-of-sequence or end-of-turn last.
        seed: noise seed; None draws one, which the completion reports.
        n: samples of this prompt, each with its own noise.
        record: keep the step map and the log-probabilities at reveal time.
    """

    gen_length: int = 128
    max_tokens: int | None = None
    steps: int = 128
    block_length: int = 32
    align_blocks: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0
    max_nfe: int | None = None
    initial_gen_length: int | None = None
    expansion_factor: int = 8
    eos_check_tokens: int = 32
    eos_confidence_threshold: float = 0.5
    expand_eos_confidence_threshold: float = 0.9
    low_conf_threshold: float = 0.1
    ignore_eos: bool = False
    eos_early_stop: bool = False
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    seed: int | None = None
    n: int = 1
    record: bool = False

    def __post_init__(self) -> None:
        faults = self.faults()
        if faults:
            raise RequestError("; ".join(faults))

    def faults(self) -> list[str]:
        """One message for each violation, naming field, value and range."""
        found: list[str] = []
        _whole(found, "gen_length", self.gen_length, 1, MAX_LENGTH)
        _whole(found, "steps", self.steps, 1, MAX_LENGTH)
        _whole(found, "block_length", self.block_length, 1, MAX_LENGTH)
        _whole(found, "top_k", self.top_k, 0, MAX_WHOLE)
        _whole(found, "n", self.n, 1, MAX_SAMPLES)
        if self.max_tokens is not None:
            _whole(found, "max_tokens", self.max_tokens, 1, MAX_WHOLE)
        if self.max_nfe is not None:
            blocks = 1 if found else math.ceil(self.gen_length / self.block_length)
            _whole(found, "max_nfe", self.max_nfe, blocks, MAX_WHOLE, "one forward for each block")
        if self.seed is not None:
            _whole(found, "seed", self.seed, 0, 2**63 - 1)
        if self.ignore_eos and self.eos_early_stop:
            found.append("eos_early_stop=True conflicts with ignore_eos=True; leave one of them out")
        _real(found, "temperature", self.temperature, 0.0, 2.0, least=MIN_TEMPERATURE)
        _real(found, "cfg_scale", self.cfg_scale, 0.0, 1000.0)
        _real(found, "top_p", self.top_p, 0.0, 1.0, open_low=True)
        _expansion(found, self)
        return found


PARAM_NAMES = tuple(field.name for field in fields(SamplingParams))

EXPANSION_NAMES = (
    "expansion_factor", "eos_check_tokens", "eos_confidence_threshold", "expand_eos_confidence_threshold",
    "low_conf_threshold",
)  # fmt: skip
"""Fields that apply only with `initial_gen_length`."""


def _whole(found: list[str], name: str, value: object, low: int, high: int, why: str = "") -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    if not good:
        above = isinstance(value, int) and value > high
        bound = f"at least {low}" if high == MAX_WHOLE and not above else f"{low}..{high}"
        found.append(f"{name}={quoted(value)} must be a whole number, {bound}{f' ({why})' if why else ''}")


def _real(
    found: list[str],
    name: str,
    value: object,
    low: float,
    high: float | None,
    *,
    open_low: bool = False,
    least: float = 0.0,
) -> None:
    """`least`: lower bound of values above `low`."""
    highest = sys.float_info.max if high is None else high
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int | float):  # comparisons work for ints beyond the float range, and reject nan
        good = good and (low < value or (low == value and not open_low)) and value <= highest
        good = good and (value == low or value >= least)
    if not good:
        bound = f"{'above' if open_low else 'at least'} {low}" + ("" if high is None else f" and at most {high}")
        bound += f", and not between {low} and {least}" if least else ""
        found.append(f"{name}={quoted(value)} must be a finite number, {bound}")


def _expansion(found: list[str], params: SamplingParams) -> None:
    _whole(found, "expansion_factor", params.expansion_factor, 2, MAX_LENGTH)
    _whole(found, "eos_check_tokens", params.eos_check_tokens, 1, MAX_LENGTH)
    for name in ("eos_confidence_threshold", "expand_eos_confidence_threshold", "low_conf_threshold"):
        _real(found, name, getattr(params, name), 0.0, 1.0)
    if params.initial_gen_length is not None:
        ceiling = params.gen_length if isinstance(params.gen_length, int) else MAX_LENGTH
        _whole(found, "initial_gen_length", params.initial_gen_length, 1, ceiling, "gen_length is the ceiling")
        if params.logits_eos_inf:
            found.append("logits_eos_inf=True bans the end token that initial_gen_length relies on; leave one out")
        return
    given = [name for name in EXPANSION_NAMES if getattr(params, name) != getattr(SamplingParams, name)]
    if given:
        found.append(f"{', '.join(given)}: used only with initial_gen_length; set it too or leave them out")


def check_real(
    name: str, value: object, low: float, high: float | None, *, open_low: bool = False, least: float = 0.0
) -> None:
    """Raise `RequestError` unless `value` is a finite number in range; for engine and sampler parameters."""
    found: list[str] = []
    _real(found, name, value, low, high, open_low=open_low, least=least)
    if found:
        raise RequestError(found[0])


def check_whole(name: str, value: object, low: int, high: int = MAX_WHOLE) -> None:
    """Raise `RequestError` unless `value` is a whole number in range; for engine and sampler parameters."""
    found: list[str] = []
    _whole(found, name, value, low, high)
    if found:
        raise RequestError(found[0])
