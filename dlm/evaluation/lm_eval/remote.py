"""Answers over HTTP, from a server of `dlm.serve`, by `/v1/completions` with token ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from dlm.decoding.params import check_real, check_whole
from dlm.errors import ConfigError, MissingExtraError, RunError
from dlm.evaluation.lm_eval.answering import Answer, AnswerJob
from dlm.evaluation.lm_eval.asking import Settings, greedy_values
from dlm.evaluation.lm_eval.texts import Pair, TokenIds
from dlm.likelihood import Ar, LladaMC
from dlm.text import TextCodec

if TYPE_CHECKING:
    from openai.types import Completion

Asked = TypeVar("Asked")
Found = TypeVar("Found")

PATHS = ("/v1/completions", "/v1")
"""Ends of an address that clients write; the rest is the server's."""


class RemoteServer:
    """Answers with a model that a server has.

    Each text is a request of its own; the server batches them. A request that the server turns away for the moment
    (429, 5xx), or whose connection breaks, is sent again.

    Args:
        base_url: the server, with or without `/v1/completions`.
        codec: the served checkpoint's tokenizer: token ids are sent.
        settings: how; what `settings.sampling` does not name is the server's own default.
        model: a name that the server has; None is its first.
        num_concurrent: requests under way at once.
        timeout: seconds that one may take.
        max_retries: how often one is sent again.

    The key of the environment variable `DLM_API_KEY` is shown where it is set.

    Raises:
        MissingExtraError: without the package openai.
        RunError: no server answers there.
        ConfigError: the server has no model of that name.
    """

    def __init__(
        self,
        base_url: str,
        codec: TextCodec,
        settings: Settings,
        *,
        model: str | None = None,
        num_concurrent: int = 16,
        timeout: float = 600.0,
        max_retries: int = 8,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("openai", "lm-eval", "the model dlm-http") from error
        check_whole("num_concurrent", num_concurrent, 1)
        check_whole("max_retries", max_retries, 0)
        check_real("timeout", timeout, 0.0, None, open_low=True)
        url = base_url.rstrip("/")
        self.url = url.removesuffix(next((path for path in PATHS if url.endswith(path)), ""))
        self.codec, self.settings, self.num_concurrent = codec, settings, num_concurrent
        key = os.environ.get("DLM_API_KEY") or "none"
        self._failed: tuple[type[Exception], ...] = (openai.APIError,)
        self._client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, timeout=timeout, max_retries=max_retries)
        served = {one.id: one for one in self._tried(lambda: self._client.models.list().data)}
        self.model = next(iter(served)) if model is None else model
        if self.model not in served:
            raise ConfigError(f"model={model!r}: {self.url} serves {', '.join(served)}")
        told = (served[self.model].model_extra or {}).get("max_model_len")
        if told is None:
            raise self._foreign("its models have no max_model_len")
        self.max_model_len = int(told)

    def generate(self, jobs: Sequence[AnswerJob], *, progress: bool) -> Iterator[list[str]]:
        """The texts of each job's samples. Raises `RunError` for what the server refuses."""

        def texts(job: AnswerJob) -> list[str]:
            return [choice.text for choice in self._completed(job.prompt, job.values).choices]

        return self._each(texts, jobs, "prompt", progress=progress)

    def score(self, pairs: Sequence[Pair], *, progress: bool) -> Iterator[Answer]:
        """The answer to each pair. Raises `RunError` for what the server refuses."""
        return self._each(self._scored, pairs, "text", progress=progress)

    def _each(
        self, action: Callable[[Asked], Found], items: Sequence[Asked], unit: str, *, progress: bool
    ) -> Iterator[Found]:
        """In order, several at once; after a failure no other is begun."""
        with ThreadPoolExecutor(self.num_concurrent) as pool:
            found = pool.map(action, items)
            yield from tqdm(found, total=len(items), disable=not progress, unit=unit, dynamic_ncols=True)

    def _scored(self, pair: Pair) -> Answer:
        context, continuation = pair
        scheme = self.settings.estimator()
        asked: dict[str, Any] = {"scheme": scheme.name, "context_tokens": len(context), "seed": self.settings.seed}
        if isinstance(scheme, LladaMC):
            asked["mc_num"] = scheme.mc_num
        body = {"echo": True, "logprobs": 1, "max_tokens": 0, "dlm": asked}
        answer = self._completed((*context, *continuation), body)
        told = (answer.model_extra or {}).get("dlm")
        if not isinstance(told, dict) or "likelihood" not in told:
            raise self._foreign("an answer has no dlm.likelihood")
        [logprob] = told["likelihood"]["logprobs"]
        if not self.settings.check_greedy:
            greedy = False
        elif scheme.name == Ar.name:
            greedy = self._told_greedy(answer, len(context))
        else:
            greedy = self._greedy(pair)
        return -float("inf") if logprob is None else logprob, greedy

    def _greedy(self, pair: Pair) -> bool:
        """Whether greedy decoding gives the continuation: token for token by their texts, which is all that is told."""
        context, continuation = pair
        values = greedy_values(len(continuation), self._algorithms)
        [choice] = self._completed(context, {**values, "logprobs": 1}).choices
        pieces = None if choice.logprobs is None else choice.logprobs.tokens
        wanted = [self.codec.piece(token) for token in continuation]
        return pieces == wanted and choice.text == self.codec.decode(continuation)

    @cached_property
    def _algorithms(self) -> tuple[str, ...]:
        """Names of those that the served model runs."""
        told = self._tried(lambda: self._client.get(f"{self.url}/generation/algorithms", cast_to=object))
        if not isinstance(told, dict) or "algorithms" not in told:
            raise self._foreign("/generation/algorithms lists none")
        return tuple(one["name"] for one in told["algorithms"] if one["available"])

    def _completed(self, prompt: TokenIds, body: Mapping[str, Any]) -> Completion:
        def ask() -> Completion:
            return self._client.completions.create(model=self.model, prompt=list(prompt), extra_body=dict(body))

        return self._tried(ask)

    def _tried(self, ask: Callable[[], Found]) -> Found:
        try:
            return ask()
        except self._failed as error:
            raise RunError(f"{self.url}: {error}") from error

    def _foreign(self, what: str) -> RunError:
        return RunError(f"{self.url} is no server of dlm ({what}): base_url names python -m dlm.serve")

    def _told_greedy(self, answer: Completion, context_tokens: int) -> bool:
        """Whether each token behind the context is the most probable one, as lm-eval's own API model finds out."""
        told = answer.choices[0].logprobs
        if told is None or told.token_logprobs is None or told.top_logprobs is None:
            raise self._foreign("an answer does not tell the most probable tokens")
        terms = zip(told.token_logprobs[context_tokens:], told.top_logprobs[context_tokens:], strict=True)
        return all(
            value is not None and value == max(one for one in top.values() if one is not None) for value, top in terms
        )
