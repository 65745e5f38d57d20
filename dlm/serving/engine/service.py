"""A loaded model that answers request bodies: checks, tokenization, decoding, detokenization. Knows no routes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from dlm.decoding.decoder import Decoder
from dlm.decoding.memory import Limits, budget, plan_memory, records
from dlm.decoding.options import DecoderStats
from dlm.decoding.request import Request
from dlm.errors import RequestError
from dlm.inputs import choose_device
from dlm.likelihood import Likelihood
from dlm.models.io.loading import Checkpoint
from dlm.models.io.model_source import ModelSource
from dlm.sampling_params import SamplingParams
from dlm.serving.engine.call import Call
from dlm.serving.engine.decoder_thread import DecoderThread
from dlm.serving.engine.defaults import Defaults, refused
from dlm.serving.engine.served_weights import ServedWeights
from dlm.serving.http.bodies import BodyReader
from dlm.serving.http.errors import NOT_FOUND, ApiError
from dlm.serving.metrics import Metrics
from dlm.serving.schemas.requests import Body
from dlm.serving.settings import ServerSettings
from dlm.text import TextCodec

log = logging.getLogger("dlm.serving")

SEED_BITS = 48
"""Size of drawn seeds: they are returned to clients, some of which read all numbers as floats."""

SCORED_ROWS = 2048
"""Rows of a forward that scores given texts; decoding resumes after each."""

INJECTED = (("ignore_eos", False),)
"""Fields and values that the router adds to bodies."""

Messages = list[dict[str, str]]
Given = ParamSpec("Given")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedRequest:
    """A request ready to submit, with what is needed to build its answer."""

    request: Request
    params: SamplingParams
    algorithm: str


class Service:
    """One model and the thread that decodes with it.

    Args:
        checkpoint: the model.
        codec: its tokenizer.
        decoder: decodes with the model.
        settings: of the server.

    Attributes:
        weights: for routes that change them; None if `weight_control` is off.
        bodies: reads request bodies.
    """

    def __init__(self, checkpoint: Checkpoint, codec: TextCodec, decoder: Decoder, settings: ServerSettings) -> None:
        self.settings, self.codec, self.family = settings, codec, checkpoint.family
        self.architecture = checkpoint.backbone.config
        self.max_model_len = min(settings.max_model_len or 2**31, self.architecture.max_positions)
        native = self.architecture.block_length
        self.defaults = Defaults.of(self.family, native, settings.algorithm, settings.generation)
        self.metrics = Metrics()
        self.thread = DecoderThread(
            decoder,
            max_wait_time=settings.max_wait_time,
            queue_size=settings.queue_size,
            on_step=self.metrics.count_forward,
        )
        self.metrics.watch(self.thread.load)
        rows = min(decoder.options.max_num_batched_tokens, SCORED_ROWS)
        self.likelihood = Likelihood(
            checkpoint.backbone, checkpoint.special, max_tokens=rows, logits_mib=decoder.options.logits_mib
        )
        self.weights = None
        if settings.weight_control:
            self.weights = ServedWeights(checkpoint, self.thread, settings.request_timeout)
        self._numbers = itertools.count()
        self._text = ThreadPoolExecutor(1, thread_name_prefix="text")
        self.bodies = BodyReader(settings.max_body_bytes)

    @classmethod
    def open(cls, source: ModelSource, settings: ServerSettings) -> Service:
        """Load the model and size the decoder for the available memory. Raises `CheckpointError`, `ConfigError`."""
        device = choose_device(settings.device)
        config, dtype = source.architecture()
        longest = min(settings.max_model_len or 2**31, config.max_positions)
        limits = Limits(longest, settings.batch_size, settings.max_num_batched_tokens, settings.gpu_memory_utilization)
        available = budget(device, settings.gpu_memory_utilization, config, dtype) - source.drafter_bytes()
        recorded = not settings.enforce_eager and records(device, dtype)
        planned = plan_memory(config, dtype, limits, available, recorded=recorded)
        options = replace(planned, enforce_eager=settings.enforce_eager)
        checkpoint = source.load(device)
        codec = TextCodec.load(source.tokenizer_folder(), source.chat)
        decoder = Decoder(checkpoint.backbone, checkpoint.special, options)
        return cls(checkpoint, codec, decoder, settings)

    def warm_up(self) -> None:
        """Decode a short answer, so that the first client does not wait for one-time setup."""
        params = self.defaults.params({"seed": 0, "gen_length": self.defaults.block_length}, None)
        prepared = self._prepared(self._ids("a"), params, ())
        for _ in self.thread.decoder.run([prepared.request]):
            log.debug("warm")
        self.thread.decoder.stats = DecoderStats(max_num_seqs=self.settings.batch_size)

    def close(self) -> None:
        """Shut down the threads."""
        self._text.shutdown(wait=False, cancel_futures=True)
        self.bodies.close()

    # Requests in

    async def in_text_thread(
        self, function: Callable[Given, Result], *given: Given.args, **named: Given.kwargs
    ) -> Result:
        """Run `function` off the event loop, one call at a time: tokenizers are slow on long texts."""
        return await asyncio.get_running_loop().run_in_executor(self._text, lambda: function(*given, **named))

    def check_model(self, name: str | None) -> str:
        """The model name to answer with. Raises `ApiError` (404) for a model that is not served."""
        if name is not None and name not in self.settings.names:
            known = ", ".join(self.settings.names)
            raise ApiError(
                404, f"model={name!r:.80} is not served here; served: {known}", NOT_FOUND, param="model",
                code="model_not_found",
            )  # fmt: skip
        return name or self.settings.names[0]

    def given(self, body: Body) -> dict[str, Any]:
        """The sampling parameters of a body, without those added by the router."""
        given = body.sampling()
        if self.settings.behind_router:
            given = {key: value for key, value in given.items() if (key, value) not in INJECTED}
        return given

    def prepare(
        self, prompt: str | Sequence[int] | Messages, params: SamplingParams, *, chat: bool = True
    ) -> PreparedRequest:
        """A prompt and its parameters as a decoder request. Slow on long texts: run it in the text thread.

        Args:
            prompt: text, token ids, or the messages of a conversation.
            params: from `Defaults.params`.
            chat: apply the chat template, if there is one, to a text.

        Raises `ApiError` (400).
        """
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], dict)):
            self._check_length(prompt)
        try:
            ids = self._ids(prompt, chat=chat)
            prepared = self._prepared(ids, params, params.stop)
            self._check_positions(prepared)
            self.thread.check(prepared.request)
        except RequestError as error:
            raise refused(error) from error
        return prepared

    def _ids(self, prompt: Any, *, chat: bool = True) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self.codec.encode(prompt) if chat and self.codec.chat else self.codec.encode_literally(prompt)
        if prompt and isinstance(prompt[0], dict):
            return self.codec.encode(prompt)
        return tuple(prompt)

    def _check_length(self, prompt: Any) -> None:
        """Reject a text that cannot fit however it is tokenized, before tokenizing it."""
        try:
            self.codec.check_fits(prompt, self.max_model_len)
        except RequestError as error:
            raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from error

    def _check_positions(self, prepared: PreparedRequest) -> None:
        request, params = prepared.request, prepared.params
        length, size = len(request.prompt_ids) + params.gen_length, prepared.request.params.block_length
        length = -(-length // size) * size if request.engine.blocks_from_zero else length
        if length > self.max_model_len:
            raise ApiError(
                400, f"prompt of {len(request.prompt_ids)} tokens and gen_length={params.gen_length} make {length} "
                f"positions, this model takes {self.max_model_len}; shorten the prompt or lower max_tokens",
                param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip

    def _prepared(self, ids: tuple[int, ...], params: SamplingParams, stop: Sequence[str]) -> PreparedRequest:
        config = self.architecture
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(SEED_BITS))
        translated, engine, sampler = params.translate(self.family, config.attention, config.block_length)
        request = Request(str(next(self._numbers)), ids, translated, engine, sampler, self.codec.stop_check(stop))
        return PreparedRequest(request, params, str(params.algorithm))

    def call(self, prepared: Sequence[PreparedRequest], *, watched: bool = False) -> Call:
        """A `Call` for these requests."""
        requests = [one.request for one in prepared]
        return Call(self.thread, requests, timeout=self.settings.request_timeout, watched=watched)
