"""Completions in protocol shapes: OpenAI's objects and chunks, with the `dlm` extensions."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm.decoding.request import Completion, Progress
from dlm.outputs import sample_of
from dlm.serving.engine.service import PreparedRequest
from dlm.text import TextCodec


@dataclass(frozen=True)
class Header:
    """Common first fields of an answer and its chunks.

    Attributes:
        chat: chat completion, else text completion.
        model: name to answer with.
    """

    chat: bool
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.chat else "cmpl"
        object.__setattr__(self, "id", f"{prefix}-{secrets.token_hex(12)}")

    def fields(self, *, chunk: bool) -> dict[str, Any]:
        """The first fields of an answer or a chunk."""
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True)
class Sample:
    """One answer, truncated at the client's stop strings and token limit.

    Attributes:
        text, token_ids: returned to the client.
        finish_reason: `stop` or `length`.
        prompt_tokens: number of tokens of its prompt.
        nfe, seconds, seed: of the completion.
        weight_version: of the weights that it was decoded with.
        logprobs: of `token_ids` at reveal time; None if not recorded.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    nfe: int
    seconds: float
    seed: int
    weight_version: int
    logprobs: tuple[float, ...] | None

    @classmethod
    def none(cls, prepared: PreparedRequest, weight_version: int) -> Sample:
        """The empty sample of a request for no tokens (`max_tokens=0`)."""
        seed = prepared.params.seed or 0
        return cls("", (), "length", len(prepared.request.prompt_ids), 0, 0.0, seed, weight_version, ())

    @classmethod
    def of(cls, completion: Completion, prepared: PreparedRequest, codec: TextCodec, weight_version: int) -> Sample:
        """The sample of a completion."""
        shown = sample_of(completion, prepared.params, codec)
        count = len(shown["token_ids"])
        logprobs = None if completion.logprobs is None else tuple(completion.logprobs[:count])
        return cls(
            text=shown["text"],
            token_ids=tuple(shown["token_ids"]),
            finish_reason=shown["finish_reason"],
            prompt_tokens=len(completion.prompt_ids),
            nfe=completion.nfe,
            seconds=completion.seconds,
            seed=completion.seed,
            weight_version=weight_version,
            logprobs=logprobs,
        )


@dataclass(frozen=True)
class EchoPrefix:
    """An echoed prompt, prepended to the answer.

    Attributes:
        text: of the prompt.
        logprobs: of its tokens, in OpenAI's shape of text completions; None if not requested.
    """

    text: str = ""
    logprobs: dict[str, Any] | None = None

    def before(self, answer: dict[str, Any], *, ended: bool) -> dict[str, Any]:
        """The log-probabilities of prompt and answer.

        Args:
            answer: OpenAI's shape of its tokens.
            ended: an answer was requested, and has ended. If it is empty, an empty token stands for its end: clients
                that request one token more than they score drop the last one (lm-eval's API model).
        """
        if self.logprobs is None:
            return answer
        if ended and not answer["tokens"]:
            answer = {**answer, "tokens": [""], "token_logprobs": [None], "text_offset": [0]}
        tops = self.logprobs["top_logprobs"]
        return {
            "tokens": self.logprobs["tokens"] + answer["tokens"],
            "token_logprobs": self.logprobs["token_logprobs"] + answer["token_logprobs"],
            "top_logprobs": None if tops is None else tops + [None] * len(answer["tokens"]),
            "text_offset": self.logprobs["text_offset"] + [len(self.text) + start for start in answer["text_offset"]],
        }


def usage(samples: Sequence[Sequence[Sample]]) -> dict[str, int]:
    """Tokens of the prompts, each counted once, and of all answers as returned."""
    prompt = sum(each[0].prompt_tokens for each in samples)
    completion = sum(len(one.token_ids) for each in samples for one in each)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def figures(samples: Sequence[Sample], prepared: PreparedRequest) -> dict[str, Any]:
    """`dlm` of an answer: forwards of all its samples, and how it was decoded. If the weights were updated between
    prompts of one body, `weight_version` is the oldest one."""
    nfe, tokens = sum(one.nfe for one in samples), sum(len(one.token_ids) for one in samples)
    return {
        "nfe": nfe,
        "tokens_per_forward": round(tokens / nfe, 4) if nfe else 0.0,
        "algorithm": prepared.algorithm,
        "seed": samples[0].seed,
        "weight_version": min(one.weight_version for one in samples),
    }


def chat_answer(
    header: Header, samples: Sequence[Sample], prepared: PreparedRequest, codec: TextCodec, *, with_logprobs: bool
) -> dict[str, Any]:
    """A `chat.completion`."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": chat_logprobs(one, codec) if with_logprobs else None,
            "finish_reason": one.finish_reason,
        }
        for index, one in enumerate(samples)
    ]
    return {
        **header.fields(chunk=False),
        "choices": choices,
        "usage": usage([samples]),
        "dlm": figures(samples, prepared),
    }


def text_answer(
    header: Header,
    samples: Sequence[Sequence[Sample]],
    prepared: Sequence[PreparedRequest],
    codec: TextCodec,
    *,
    with_logprobs: bool,
    leads: Sequence[EchoPrefix] | None = None,
) -> dict[str, Any]:
    """A `text_completion` for one or several prompts; `leads` are prepended to the answers of each."""
    everything = [one for each in samples for one in each]
    each_lead = [lead for lead, each in zip(leads or [EchoPrefix()] * len(samples), samples, strict=True) for _ in each]
    choices = [
        {
            "index": index,
            "text": lead.text + one.text,
            "logprobs": lead.before(text_logprobs(one, codec), ended=one.nfe > 0) if with_logprobs else None,
            "finish_reason": one.finish_reason,
        }
        for index, (lead, one) in enumerate(zip(each_lead, everything, strict=True))
    ]
    return {
        **header.fields(chunk=False),
        "choices": choices,
        "usage": usage(samples),
        "dlm": figures(everything, prepared[0]),
    }


def chat_logprobs(sample: Sample, codec: TextCodec) -> dict[str, Any]:
    """OpenAI's shape; log-probabilities at reveal time, which are not an autoregressive likelihood."""
    content = []
    for token_id, value in zip(sample.token_ids, sample.logprobs or (), strict=True):
        text = codec.piece(token_id)
        content.append({"token": text, "logprob": finite(value), "bytes": list(text.encode()), "top_logprobs": []})
    return {"content": content, "refusal": None}


def text_logprobs(sample: Sample, codec: TextCodec) -> dict[str, Any]:
    """OpenAI's shape of text completions."""
    tokens = [codec.piece(token_id) for token_id in sample.token_ids]
    starts = [len(codec.decode(sample.token_ids[:count])) for count in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [finite(value) for value in sample.logprobs or ()],
        "top_logprobs": None,
        "text_offset": starts,
    }


def finite(value: float) -> float | None:
    """The value, or None if JSON cannot represent it."""
    return value if math.isfinite(value) else None


def revealed(news: Progress, index: int, codec: TextCodec) -> dict[str, Any]:
    """`dlm` of a chunk: what one forward did to the canvas of choice `index`."""
    chances = [0.0 if math.isnan(one) else round(math.exp(one), 4) for one in news.logprobs or ()]
    written = zip(news.positions, news.tokens, chances, strict=True)
    return {
        "event": "step",
        "index": index,
        "step": news.step,
        "block": news.block,
        "num_blocks": news.num_blocks,
        "revealed": [[position, codec.piece(token), chance] for position, token, chance in written],
        "cleared": list(news.cleared),
        "inserted": news.inserted,
    }
