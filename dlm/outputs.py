"""What `LLM.generate` gives for a prompt: plain dictionaries, cut where the caller asked; and how a canvas begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dlm.decoding.canvas import Canvas
from dlm.decoding.request import Completion
from dlm.sampling_params import SamplingParams
from dlm.text import TextCodec


def sample_of(completion: Completion, params: SamplingParams, codec: TextCodec) -> dict[str, Any]:
    """One sample of a prompt.

    The text ends before the first stop string, and `token_ids` with the last token that is part of the text; everything
    that is counted or listed by token follows `token_ids`.
    """
    text, token_ids, stopped = codec.show(completion.token_ids, params.stop)
    count = len(token_ids)
    sample = {
        "text": text,
        "token_ids": token_ids,
        "finish_reason": "stop" if stopped else completion.finish_reason,
        "nfe": completion.nfe,
        "step_map": list((completion.step_map or ())[:count]),
        "seconds": completion.seconds,
        "seed": completion.seed,
        "sample": completion.sample,
        "prompt_token_ids": list(completion.prompt_ids),
    }
    if params.record:
        logprobs = (completion.logprobs or ())[:count]
        sample["logprobs"] = [None if math.isnan(value) else value for value in logprobs]
    return sample


def item_of(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The item of a prompt from its samples: the first one's values, all of them in `outputs`, and the usage of all."""
    first = samples[0]
    prompt_tokens = len(first["prompt_token_ids"])
    completion_tokens = sum(len(sample["token_ids"]) for sample in samples)
    return {
        **{key: value for key, value in first.items() if key != "sample"},
        "usage": _usage(prompt_tokens, completion_tokens),
        "outputs": list(samples),
    }


def opening(canvas: Canvas) -> dict[str, int]:
    """Lengths behind the prompt: of a canvas before its first forward, of its first block and of the others."""
    prompt = canvas.prompt_length
    blocks = [block for block in canvas.blocks if block.stop > prompt]
    first = blocks[0].stop - max(blocks[0].start, prompt)
    others = blocks[1].stop - blocks[1].start if len(blocks) > 1 else first
    return {"gen_length": canvas.length - prompt, "first_block": first, "block_length": others}


def refusal(message: str) -> dict[str, Any]:
    """The item of a prompt that cannot be decoded."""
    return {
        "text": "",
        "token_ids": [],
        "finish_reason": "error",
        "nfe": 0,
        "step_map": [],
        "seconds": 0.0,
        "usage": _usage(0, 0),
        "outputs": [],
        "error": message,
    }


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
