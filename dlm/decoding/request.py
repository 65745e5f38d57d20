"""Requests to the decoder and its completions: token ids only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlm.decoding.engines.base import Engine
from dlm.decoding.params import SamplingParams
from dlm.decoding.samplers.base import Sampler


@dataclass(frozen=True)
class Request:
    """One prompt and how to decode it.

    Attributes:
        id: stable name, repeated in each completion.
        prompt_ids: the prompt's tokens; the mask id marks positions to fill in (infilling).
        engine, sampler: which positions to recompute and which to reveal.
        should_stop: called with the generated tokens before the first end token whenever a block is done; True ends the
            answer there (for stop strings, which the decoder does not know).
        watch: called after each forward of each sample, in the decoder's thread.
        token_stats: with `params.record`, also keep `Completion.logprobs_processed` and `entropies`; costs each forward
            another pass over its logits.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    engine: Engine
    sampler: Sampler
    should_stop: Callable[[Sequence[int]], bool] | None = None
    watch: Callable[[Progress], None] | None = None
    token_stats: bool = False


@dataclass(frozen=True)
class Progress:
    """What one forward did to one sample of a request. Positions count from the end of the prompt; those inside the
    prompt (infilling) are negative.

    Attributes:
        sample: index among the request's `n`.
        step: forwards so far, including this one.
        block, num_blocks: index of the active block, and the number of blocks.
        positions, tokens: positions written, and their tokens.
        logprobs: log-probabilities of `tokens` under the raw logits; None without `record`.
        cleared: positions that became masks again.
        inserted: position and number of masks inserted after that (`initial_gen_length`); later positions shift.
        settled: when the block is done, the generated tokens so far, now final; else None.
    """

    sample: int
    step: int
    block: int
    num_blocks: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    cleared: tuple[int, ...]
    inserted: tuple[int, int] | None
    settled: tuple[int, ...] | None


@dataclass(frozen=True)
class Completion:
    """The result of one sample of a request.

    Attributes:
        request_id, sample: the request, and the index among its `n` samples.
        seed: the seed used.
        prompt_ids: the prompt with its masked positions filled in.
        token_ids: the generated tokens before the first end token, truncated to `max_tokens`.
        canvas_ids: all positions after the prompt as the decoder left them; positions never reached hold the mask id.
        finish_reason: `stop` (an end token or `should_stop`), `length`, or `error`.
        nfe: forwards this canvas took part in; a guided pair counts once.
        positions: positions recomputed, summed over those forwards (a guided pair counts twice).
        seconds: from admission to the end.
        step_map: for each position of `canvas_ids`, the 1-based forward that revealed its token, 0 if none did; only
            with `record`.
        logprobs: for each position of `canvas_ids`, the log-probability of its token under the raw logits (after
            guidance, before temperature and filters) of the forward that revealed it, nan if none did; only with
            `record`. Not an autoregressive likelihood.
        logprobs_processed: the same under the distribution the token was drawn from: after `temperature`, `top_k`,
            `top_p` and banned tokens. 0 at temperature 0, where nothing is drawn. Only with `Request.token_stats`.
        entropies: for each position, the entropy in nats of softmax(raw logits) at reveal time. Only with
            `Request.token_stats`.
        error: why there is no answer; None if there is one.
        fault: with `error`: `refused` (the request cannot be decoded), `failed` (its forward raised), `out_of_memory`,
            or `not_finite` (the model's logits were not finite); else empty.
    """

    request_id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...] = ()
    canvas_ids: tuple[int, ...] = ()
    finish_reason: str = "error"
    nfe: int = 0
    positions: int = 0
    seconds: float = 0.0
    step_map: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    logprobs_processed: tuple[float, ...] | None = None
    entropies: tuple[float, ...] | None = None
    error: str | None = None
    fault: str = ""
