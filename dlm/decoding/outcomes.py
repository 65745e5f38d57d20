"""What the decoder reports for a canvas: progress, then a completion or an error."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dlm.decoding.canvas import Canvas
from dlm.decoding.layout import IntArray
from dlm.decoding.request import Completion, Progress, Request
from dlm.decoding.scoring.selection import Selection
from dlm.errors import NotFiniteError


def progress_of(canvas: Canvas, choice: Selection, end_ids: Sequence[int], *, block_done: bool) -> Progress:
    """What the last forward did to the canvas."""
    return Progress(
        sample=canvas.sample,
        step=canvas.nfe,
        block=canvas.block_index,
        num_blocks=len(canvas.blocks),
        positions=tuple((choice.positions - canvas.prompt_length).tolist()),
        tokens=tuple(choice.tokens.tolist()),
        logprobs=None if choice.logprobs is None else tuple(choice.logprobs.tolist()),
        cleared=tuple((choice.cleared - canvas.prompt_length).tolist()),
        inserted=None if canvas.inserted is None else (canvas.inserted[0] - canvas.prompt_length, canvas.inserted[1]),
        settled=tuple(canvas.answer(end_ids)[0].tolist()) if block_done else None,
    )


def completion_of(canvas: Canvas, answer: IntArray, *, stopped: bool) -> Completion:
    """Completion of a finished canvas.

    Args:
        canvas: as the last forward left it.
        answer: its tokens before the first end token.
        stopped: an end token or `should_stop` ended it.
    """
    request, prompt = canvas.request, canvas.prompt_length
    limit, record = request.params.max_tokens, request.params.record
    processed, entropies = (tuple(row[prompt:].tolist()) if request.token_stats else None for row in canvas.token_stats)
    cut = limit is not None and len(answer) > limit
    return Completion(
        request_id=request.id,
        sample=canvas.sample,
        seed=canvas.seed,
        prompt_ids=tuple(canvas.tokens[:prompt].tolist()),
        token_ids=tuple(answer[:limit].tolist()),
        canvas_ids=tuple(canvas.tokens[prompt:].tolist()),
        finish_reason="stop" if stopped and not cut else "length",
        nfe=canvas.nfe,
        positions=canvas.positions,
        seconds=time.perf_counter() - canvas.admitted,
        step_map=tuple(canvas.step_map[prompt:].tolist()) if record else None,
        logprobs=tuple(canvas.logprobs[prompt:].tolist()) if record else None,
        logprobs_processed=processed,
        entropies=entropies,
    )


def failure_of(canvas: Canvas, error: Exception) -> Completion:
    """Completion of a request whose forward raised `error` or produced logits that are not finite."""
    request = canvas.request
    fault = "out_of_memory" if is_out_of_memory(error) else "failed"
    fault = "not_finite" if isinstance(error, NotFiniteError) else fault
    message = str(error) if isinstance(error, NotFiniteError) else f"{type(error).__name__}: {error}"
    return Completion(request.id, 0, canvas.seed, request.prompt_ids, error=message, fault=fault)


def not_finite(canvas: Canvas, position: int) -> NotFiniteError:
    """Error for a canvas whose logits at `position` are not finite, in the forward that is not counted yet."""
    what = f"the logits of position {position} are not finite in forward {canvas.nfe + 1}"
    if canvas.guided:
        return NotFiniteError(f"{what}; lower cfg_scale={canvas.request.params.cfg_scale}, or check the weights")
    return NotFiniteError(f"{what}; the weights are damaged, or overflow in this dtype (try dtype=float32)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch has an exception type for it only on GPUs; on a CPU only the message tells."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def refusal_of(request: Request, error: Exception) -> Completion:
    """Completion of a request that cannot be decoded."""
    seed = request.params.seed or 0
    return Completion(request.id, 0, seed, request.prompt_ids, error=str(error), fault="refused")
