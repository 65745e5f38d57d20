"""Log-probabilities of given texts: text completions with `echo` and `logprobs`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dlm.decoding.outcomes import is_out_of_memory
from dlm.errors import NotFiniteError, RequestError
from dlm.likelihood.estimates import Scored
from dlm.likelihood.schemes import SCHEMES, Ar, LladaMC, Scheme
from dlm.serving.api.answers import finite
from dlm.serving.engine.call import RETRY_AFTER
from dlm.serving.engine.decoder_thread import DecoderThread
from dlm.serving.engine.defaults import refused
from dlm.serving.engine.queued import Aborted, Draining, QueueFull, Unavailable
from dlm.serving.http.errors import (
    SERVER,
    ApiError,
    aborted,
    draining,
    not_finite,
    out_of_memory,
    overloaded,
    timed_out,
    unavailable,
)
from dlm.serving.schemas.requests import ScoringRequest
from dlm.text import TextCodec

MOST_DRAWS = 1024
"""Maximum `mc_num` of a request."""


@dataclass(frozen=True)
class Scoring:
    """How texts are scored.

    Attributes:
        scheme: from `dlm.likelihood.schemes`.
        context_tokens: leading tokens of each text that are context; those after them are scored.
        seed: of the masks.
    """

    scheme: Scheme
    context_tokens: int
    seed: int

    @classmethod
    def of(cls, asked: ScoringRequest) -> Scoring:
        """Raises `ApiError` (400) for invalid settings, or settings without effect."""
        scheme, draws = asked.scheme or Ar.name, asked.mc_num
        if scheme not in SCHEMES:
            raise ApiError(400, f"dlm.scheme={scheme!r} is unknown; known: {', '.join(SCHEMES)}", param="dlm.scheme")
        if draws is not None and scheme != LladaMC.name:
            raise ApiError(400, f"dlm.mc_num requires scheme={LladaMC.name}; leave it out", param="dlm.mc_num")
        if draws is not None and not 1 <= draws <= MOST_DRAWS:
            raise ApiError(400, f"dlm.mc_num={draws} must be 1..{MOST_DRAWS}", param="dlm.mc_num")
        if scheme != Ar.name and asked.context_tokens is None:
            raise ApiError(
                400, f"dlm.scheme={scheme} needs dlm.context_tokens, the number of context tokens",
                param="dlm.context_tokens",
            )  # fmt: skip
        seed = asked.seed or 0
        if not 0 <= seed < 2**63:
            raise ApiError(400, f"dlm.seed={seed} must be 0..{2**63 - 1}", param="dlm.seed")
        kind = SCHEMES[scheme]
        chosen = kind() if draws is None else LladaMC(draws)
        return cls(chosen, 1 if asked.context_tokens is None else asked.context_tokens, seed)

    def slices(self, score: Any, token_ids: Sequence[int]) -> Iterator[Scored | None]:
        """The slices of `Likelihood.score_in_slices` for a text. Raises `ApiError` (400)."""
        if len(token_ids) < 2:
            raise ApiError(400, "the text has fewer than two tokens; there is nothing to score", param="prompt")
        if not 1 <= self.context_tokens < len(token_ids):
            raise ApiError(
                400, f"context_tokens={self.context_tokens} must be 1..{len(token_ids) - 1}: the text has "
                f"{len(token_ids)} tokens, and at least one must be scored",
                param="dlm.context_tokens",
            )  # fmt: skip
        try:
            found: Iterator[Scored | None] = score(
                token_ids[: self.context_tokens], token_ids[self.context_tokens :], self.scheme, seed=self.seed
            )
        except RequestError as error:
            raise refused(error) from error
        return found


@dataclass(frozen=True)
class Echo:
    """A text that is returned with its log-probabilities.

    Attributes:
        token_ids: of the text.
        context_tokens: number of leading tokens that are not scored.
        scored: scores of the others.
        weight_version: of the weights that it was scored with.
    """

    token_ids: tuple[int, ...]
    context_tokens: int
    scored: Scored
    weight_version: int

    def logprobs(self, codec: TextCodec, *, best: bool) -> dict[str, Any]:
        """OpenAI's shape; null for tokens that are not scored. `best` adds the most probable tokens, for schemes that
        provide them."""
        pieces = [codec.piece(token_id) for token_id in self.token_ids]
        starts = [0]
        for piece in pieces[:-1]:
            starts.append(starts[-1] + len(piece))
        nothing = [None] * self.context_tokens
        tops: list[dict[str, float | None] | None] = []
        for piece, own, token, value in zip(
            pieces[self.context_tokens :],
            self.scored.per_token.tolist(),
            self.scored.best.tolist(),
            self.scored.best_logprobs.tolist(),
            strict=True,
        ):
            tops.append(None if token < 0 else {piece: finite(own), codec.piece(token): finite(value)})
        known = best and any(tops)
        return {
            "tokens": pieces,
            "token_logprobs": [*nothing, *map(finite, self.scored.per_token.tolist())],
            "top_logprobs": [*nothing, *tops] if known else None,
            "text_offset": starts,
        }


def estimates(scoring: Scoring, echoes: Sequence[Echo]) -> dict[str, Any]:
    """The scheme, and its estimate for each text: the sum of the terms, with its standard error if masks are drawn
    (null for a single draw)."""
    return {
        "scheme": scoring.scheme.name,
        "logprobs": [finite(each.scored.mean) for each in echoes],
        "stderr": [finite(each.scored.stderr) for each in echoes],
    }


class Scorings:
    """Texts of one request, scored between the decoder's forwards.

    Args:
        thread: runs the model.
        slices: from `Scoring.slices`, one per text.

    Attributes:
        weight_versions: of the weights that each text was scored with.
    """

    def __init__(self, thread: DecoderThread, slices: Sequence[Iterator[Scored | None]]) -> None:
        self._thread, self._slices = thread, slices
        self._loop = asyncio.get_running_loop()
        self._results: list[asyncio.Future[Scored]] = [self._loop.create_future() for _ in slices]
        self._gone = threading.Event()
        self.weight_versions: list[int] = []

    async def results(self, timeout: float) -> list[Scored]:
        """The scores, in order. On cancellation, what is not done is dropped.

        Raises `ApiError`: 429 if too much other work is queued, 503 while draining, if out of memory or while decoding
        is unavailable, 504 after `timeout` seconds, 500 for a failure.
        """
        try:
            async with asyncio.timeout(timeout):
                for index, each in enumerate(self._slices):
                    self._thread.work(self._while_wanted(each), partial(self._tell, index))
                return list(await asyncio.gather(*self._results))
        except Draining:
            raise draining() from None
        except Unavailable as error:
            raise unavailable(str(error)) from None
        except QueueFull:
            raise overloaded("too many texts are queued for scoring; try again later", RETRY_AFTER) from None
        except TimeoutError:
            raise timed_out(timeout) from None
        finally:
            self._gone.set()

    def _while_wanted(self, slices: Iterator[Scored | None]) -> Iterator[Scored | None]:
        for found in slices:
            if self._gone.is_set():
                return
            yield found

    def _tell(self, index: int, found: Scored | None, error: Exception | None) -> None:
        """Called in the decoder thread."""
        self.weight_versions.append(self._thread.weight_version)
        self._loop.call_soon_threadsafe(self._settle, self._results[index], found, error)

    def _settle(self, result: asyncio.Future[Scored], found: Scored | None, error: Exception | None) -> None:
        if result.done() or self._gone.is_set():
            return
        if found is not None:
            result.set_result(found)
        elif error is not None and is_out_of_memory(error):
            result.set_exception(out_of_memory())
        elif isinstance(error, Aborted | Unavailable):
            responses = aborted if isinstance(error, Aborted) else unavailable
            result.set_exception(responses(str(error)))
        elif isinstance(error, NotFiniteError):
            result.set_exception(not_finite(str(error)))
        else:
            name = type(error).__name__
            result.set_exception(ApiError(500, f"scoring this text failed ({name}); see the server's log", SERVER))
