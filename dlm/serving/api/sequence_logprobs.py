"""Log-probabilities of given sequences in TRL's shapes: each token with all later ones masked, and the best one."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dlm.likelihood.estimates import Scored
from dlm.serving.engine.service import Service
from dlm.serving.http.errors import ApiError
from dlm.serving.schemas.control_requests import SequencesRequest
from dlm.serving.schemas.unsupported_params import refuse_foreign


def check_sequences(service: Service, body: SequencesRequest) -> None:
    """Raise `ApiError` (400) if the sequences cannot be scored."""
    refuse_foreign(body.unknown)
    if body.top_logprobs != 1:
        raise ApiError(
            400, f"top_logprobs={body.top_logprobs} must be 1: only the most probable token is returned",
            param="top_logprobs",
        )  # fmt: skip
    if body.temperature not in (None, 1):
        raise ApiError(400, f"temperature={body.temperature} must be 1", param="temperature")
    if len(body.sequences) != len(body.prompt_lengths) or not body.sequences:
        raise ApiError(
            400, f"got {len(body.sequences)} sequences and {len(body.prompt_lengths)} prompt_lengths; send the same "
            "number of each, at least one",
            param="prompt_lengths",
        )  # fmt: skip
    vocabulary = service.architecture.vocab_size
    for index, (ids, length) in enumerate(zip(body.sequences, body.prompt_lengths, strict=True)):
        where = f"sequences[{index}]"
        if not 0 <= length <= len(ids):
            raise ApiError(
                400, f"prompt_lengths[{index}]={length} must be 0..{len(ids)}, the length of {where}",
                param="prompt_lengths",
            )  # fmt: skip
        if len(ids) > service.max_model_len:
            raise ApiError(
                400, f"{where} has {len(ids)} tokens, this model takes {service.max_model_len}; shorten it",
                param=where, code="context_length_exceeded",
            )  # fmt: skip
        outside = next((token for token in ids if not 0 <= token < vocabulary), None)
        if outside is not None:
            raise ApiError(400, f"{where}: token {outside} is outside the vocabulary 0..{vocabulary - 1}", param=where)


class SequenceRow:
    """The completion of one sequence.

    Attributes:
        best, own: `[length]` int32, the most probable tokens and the given ones.
        best_logprobs, own_logprobs: `[length]` float32, their log-probabilities; -inf for a token without context.
    """

    def __init__(self, own: Sequence[int], scored: Scored | None) -> None:
        count, known = len(own), 0 if scored is None else len(scored.per_token)
        self.own = np.array(own, dtype=np.int32)
        self.best = np.zeros(count, dtype=np.int32)
        self.best_logprobs = np.full(count, -math.inf, dtype=np.float32)
        self.own_logprobs = self.best_logprobs.copy()
        if scored is not None:
            self.best[count - known :] = scored.best
            self.best_logprobs[count - known :] = scored.best_logprobs
            self.own_logprobs[count - known :] = scored.per_token

    @classmethod
    def of(cls, ids: Sequence[int], prompt_length: int, scored: Scored | None) -> SequenceRow:
        """The row of a sequence; its first token has no context and is not scored."""
        return cls(ids[prompt_length:], scored)


def lists(rows: Sequence[SequenceRow]) -> dict[str, Any]:
    """TRL's response as JSON lists; a token without context has empty lists."""
    known = [np.isfinite(row.best_logprobs).tolist() for row in rows]
    return {
        "logprobs": [
            [[value] if good else [] for value, good in zip(row.best_logprobs.tolist(), goods, strict=True)]
            for row, goods in zip(rows, known, strict=True)
        ],
        "logprob_token_ids": [
            [[token] if good else [] for token, good in zip(row.best.tolist(), goods, strict=True)]
            for row, goods in zip(rows, known, strict=True)
        ],
    }


def arrays(rows: Sequence[SequenceRow]) -> dict[str, Any]:
    """TRL's response as base64 arrays."""
    lengths = [len(row.own) for row in rows]
    longest = max(lengths)

    def packed(parts: Sequence[npt.NDArray[Any]], filler: float) -> str:
        whole = np.full((len(rows), longest), filler, dtype=parts[0].dtype)
        for index, part in enumerate(parts):
            whole[index, : len(part)] = part
        return b64encode(whole.tobytes()).decode()

    return {
        "logprobs_b64": packed([row.best_logprobs for row in rows], -math.inf),
        "token_ids_b64": packed([row.best for row in rows], 0),
        "actual_logprobs_b64": packed([row.own_logprobs for row in rows], -math.inf),
        "actual_token_ids_b64": packed([row.own for row in rows], 0),
        "shape": [len(rows), longest, 1],
        "completion_lengths": lengths,
    }
