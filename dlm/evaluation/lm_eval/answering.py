"""What lm-eval calls: its requests in, its answers out, whatever answers them. Knows lm-eval's shapes and not the
package, so that a stand-in can take its place."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from dlm.decoding.noise import seed_of
from dlm.errors import ConfigError, RequestError
from dlm.evaluation.lm_eval.asking import Settings
from dlm.evaluation.lm_eval.texts import Pair, Texts, TokenIds
from dlm.text import TextCodec

Answer = tuple[float, bool]
"""Log-probability of a continuation in nats, and whether greedy decoding gives it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerJob:
    """A prompt to answer.

    Attributes:
        prompt: token ids.
        values: fields of `SamplingParams`.
    """

    prompt: TokenIds
    values: Mapping[str, Any]


class Backend(Protocol):
    """Answers in process or elsewhere."""

    @property
    def codec(self) -> TextCodec:
        """The checkpoint's tokenizer."""

    @property
    def max_model_len(self) -> int:
        """Positions of prompt and answer together."""

    def generate(self, jobs: Sequence[AnswerJob], *, progress: bool) -> Iterator[list[str]]:
        """The texts of each job's `n` samples, in order."""

    def score(self, pairs: Sequence[Pair], *, progress: bool) -> Iterator[Answer]:
        """The answer to each pair, in order."""


class AnswerRequest(Protocol):
    """lm-eval's `Instance`, as far as it is read."""

    @property
    def args(self) -> tuple[Any, ...]:
        """`(context, generation_kwargs)`, `(context, continuation)`, or `(text,)`."""


class Answering:
    """lm-eval's three kinds of requests, and what else it asks a model for.

    Equal requests of one call are the repeats of a task: they are samples of one prompt, each with noise of its own.
    What does not fit into the model is cut on the left, with a warning, as lm-eval's other models do. One position
    fewer than the model has is used for likelihoods, since a server needs it; so both ways give the same.

    Args:
        backend: answers.
        settings: how.
        name: of the tokenizer, for lm-eval's caches.
    """

    cache_hook: Any
    """lm-eval's; it is told every answer as soon as it is known."""

    def __init__(self, backend: Backend, settings: Settings, name: str) -> None:
        self.backend, self.settings, self.name = backend, settings, name
        self.texts = Texts(backend.codec, backend.max_model_len - 1)

    def generate_until(self, requests: Sequence[AnswerRequest], disable_tqdm: bool = False) -> list[str]:
        """The answer to each `(context, generation_kwargs)`, cut before the first of `until`.

        Raises:
            RequestError: wishes that cannot be honoured, before anything is decoded.
            RunError: a prompt that could not be decoded.
        """
        places: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            places.setdefault(json.dumps(request.args, sort_keys=True), []).append(index)
        jobs = [self._job(*requests[group[0]].args, n=len(group)) for group in places.values()]
        answers = [""] * len(requests)
        texts = self.backend.generate(jobs, progress=not disable_tqdm)
        for group, samples in zip(places.values(), texts, strict=True):
            for index, text in zip(group, samples, strict=True):
                answers[index] = text
                self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return answers

    def loglikelihood(self, requests: Sequence[AnswerRequest], disable_tqdm: bool = False) -> list[Answer]:
        """For each `(context, continuation)` the estimate of its log-probability, and whether it is greedy.

        Raises:
            RequestError: a continuation that cannot be scored.
        """
        pairs = [self._fitting(self.texts.pair(*request.args)) for request in requests]
        answers = []
        for request, answer in zip(requests, self._scored(pairs, progress=not disable_tqdm), strict=True):
            answers.append(answer)
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[AnswerRequest], disable_tqdm: bool = False) -> list[float]:
        """For each `(text,)` the sum of the estimates of its windows, the first one given a lead token."""
        windows = [self.texts.windows(*request.args) for request in requests]
        answers = self._scored([pair for each in windows for pair in each], progress=not disable_tqdm)
        totals = []
        for request, each in zip(requests, windows, strict=True):
            totals.append(sum(logprob for logprob, _ in islice(answers, len(each))))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _job(self, context: str, kwargs: Mapping[str, Any], *, n: int) -> AnswerJob:
        values = self.settings.generation(kwargs)
        room = self.backend.max_model_len - values["gen_length"]
        if room < 1:
            raise RequestError(
                f"gen_length={values['gen_length']} leaves no position for a prompt, the model has "
                f"{self.backend.max_model_len}; set gen_length in the model arguments"
            )
        prompt = self.texts.encode(context)
        if len(prompt) > room:
            log.warning("a prompt of %d tokens was cut on the left to %d, so that its answer fits", len(prompt), room)
        return AnswerJob(prompt[-room:], {**values, "n": n, "seed": seed_of(self.settings.seed, context)})

    def _scored(self, pairs: Sequence[Pair], *, progress: bool) -> Iterator[Answer]:
        guidance = self.settings.sampling.get("cfg_scale")
        if guidance:
            raise RequestError(f"cfg_scale={guidance}: likelihoods are without guidance; leave it out for such tasks")
        return self.backend.score(pairs, progress=progress)

    def _fitting(self, pair: Pair) -> Pair:
        context, continuation = pair
        spare = self.texts.longest - len(continuation)
        if spare < 1:
            raise RequestError(
                f"a continuation of {len(continuation)} tokens, and the model takes {self.texts.longest} with what is "
                "before it; score it as a rolling task, or take a model with more positions"
            )
        if len(context) > spare:
            log.warning("a context of %d tokens was cut on the left to %d, so that it fits", len(context), spare)
        return context[-spare:], continuation

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the checkpoint's chat template. Raises `RequestError` where there is none."""
        return self.texts.rendered(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, for lm-eval's records; None where it is not asked for. Raises `ConfigError` for a name."""
        if isinstance(chat_template, str):
            raise ConfigError(
                f"--apply_chat_template {chat_template}: templates have no names here; leave the name out for the "
                "checkpoint's own"
            )
        return self.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, which lm-eval records."""
        return self.texts.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Tells caches of different tokenizers apart."""
        return self.name

    @property
    def eot_token_id(self) -> int | None:
        """The end token, which lm-eval records."""
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def max_length(self) -> int:
        """Tokens of a context and its continuation."""
        return self.texts.longest

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the model arguments."""
        estimator, settings = self.settings.estimator(), self.settings
        likelihood = {"scheme": estimator.name, "seed": settings.seed, "check_greedy": settings.check_greedy}
        return {"dlm": {**likelihood, "mc_num": getattr(estimator, "mc_num", None)}}
