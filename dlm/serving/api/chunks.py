"""A streamed answer: final text for any client, and optionally what each forward revealed."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dlm.decoding.canvas import Canvas
from dlm.decoding.request import Completion, Progress
from dlm.outputs import opening
from dlm.serving.api.answers import Header, Sample, chat_logprobs, figures, revealed, text_logprobs, usage
from dlm.serving.api.stream import SettledText
from dlm.serving.engine.call import Call
from dlm.serving.engine.service import PreparedRequest, Service
from dlm.serving.http.errors import ApiError

DONE = "[DONE]"


class Chunks:
    """Builds the chunks of one answer.

    Args:
        service: answers the request.
        header: of all chunks.
        prepared: its prompts.
        events: report what each forward revealed.
        usage: report the usage at the end.
        logprobs: the last chunk of each sample has its log-probabilities.
    """

    def __init__(
        self,
        service: Service,
        header: Header,
        prepared: Sequence[PreparedRequest],
        *,
        events: bool,
        usage: bool,
        logprobs: bool,
    ) -> None:
        self.service, self.header, self.prepared = service, header, prepared
        self.events, self.usage, self.logprobs = events, usage, logprobs
        self._samples: dict[tuple[int, int], Sample] = {}
        self._texts = {
            (index, sample): SettledText(service.codec, one.params.stop, one.params.max_tokens)
            for index, one in enumerate(prepared)
            for sample in range(one.params.n)
        }

    async def of(self, call: Call) -> AsyncIterator[str]:
        """The data of each event. An error is sent as the last event."""
        begun, first = time.perf_counter(), True
        for piece in self._opening():
            yield piece
        try:
            async for index, news in call.news():
                if isinstance(news, Progress):
                    for piece in self._progress(index, news):
                        yield piece
                    settled = news.settled is not None
                else:
                    for piece in self._end(index, news, call.weight_versions[index]):
                        yield piece
                    settled = True
                if first and settled:
                    first = False
                    self.service.metrics.first_block.observe(time.perf_counter() - begun)
        except ApiError as error:
            self.service.metrics.broken_streams.inc()
            yield json.dumps(error.body)
            return
        if self.usage:
            samples = [
                [self._samples[index, sample] for sample in range(one.params.n)]
                for index, one in enumerate(self.prepared)
            ]
            yield self._chunk([], usage=usage(samples))
        yield DONE

    def _opening(self) -> list[str]:
        """The role of every choice, and its initial canvas."""
        pieces = []
        for key in self._texts:
            if self.header.chat:
                pieces.append(self._chunk([self._choice(key, "", role=True)], **self._start(key)))
            elif self.events:
                pieces.append(self._chunk([], **self._start(key)))
        return pieces

    def _start(self, key: tuple[int, int]) -> dict[str, Any]:
        if not self.events:
            return {}
        one = self.prepared[key[0]]
        request = one.request
        start = {
            "event": "start",
            "index": self._place(key),
            "prompt_tokens": len(request.prompt_ids),
            **opening(Canvas(request, key[1], 0, self.service.thread.decoder.special.mask_id)),
            "algorithm": one.algorithm,
            "seed": request.params.seed,
        }
        return {"dlm": start}

    def _progress(self, index: int, news: Progress) -> list[str]:
        key = (index, news.sample)
        piece = "" if news.settled is None else self._texts[key].push(news.settled)
        extra = {"dlm": revealed(news, self._place(key), self.service.codec)} if self.events else {}
        if not piece and not extra:
            return []
        return [self._chunk([self._choice(key, piece)] if piece else [], **extra)]

    def _end(self, index: int, completion: Completion, weight_version: int) -> list[str]:
        key, prepared = (index, completion.sample), self.prepared[index]
        sample = Sample.of(completion, prepared, self.service.codec, weight_version)
        self._samples[key] = sample
        self.service.metrics.count_answer(
            0 if completion.sample else sample.prompt_tokens, len(sample.token_ids), sample.nfe
        )
        rest = self._texts[key].finish(sample.text)
        pieces = [self._chunk([self._choice(key, rest)])] if rest else []
        last = self._choice(key, "", finish_reason=sample.finish_reason)
        if self.logprobs:
            shape = chat_logprobs if self.header.chat else text_logprobs
            last["logprobs"] = shape(sample, self.service.codec)
        end = {
            "event": "end",
            "index": self._place(key),
            **figures([sample], prepared),
            "completion_tokens": len(sample.token_ids),
            "seconds": round(sample.seconds, 4),
            "tokens_per_second": round(len(sample.token_ids) / max(sample.seconds, 1e-9), 2),
        }
        return [*pieces, self._chunk([last], dlm=end)]

    def _place(self, key: tuple[int, int]) -> int:
        """Index of the choice."""
        return sum(one.params.n for one in self.prepared[: key[0]]) + key[1]

    def _choice(
        self, key: tuple[int, int], text: str, *, role: bool = False, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": self._place(key), "logprobs": None, "finish_reason": finish_reason}
        if not self.header.chat:
            return {**choice, "text": text}
        delta = {"role": "assistant", "content": ""} if role else {"content": text} if text else {}
        return {**choice, "delta": delta}

    def _chunk(self, choices: list[dict[str, Any]], **extra: Any) -> str:
        return json.dumps({**self.header.fields(chunk=True), "choices": choices, **extra}, ensure_ascii=False)
