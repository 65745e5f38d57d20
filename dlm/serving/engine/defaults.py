"""Merges a body's fields with the server's defaults into the parameters of one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlm.decoding.algorithms import resolve
from dlm.decoding.params import MAX_LENGTH
from dlm.errors import RequestError
from dlm.models.families import Family
from dlm.sampling_params import BLOCK_LENGTH, OPTION_NAMES, SamplingParams
from dlm.serving.http.errors import ApiError

MOST_SAMPLES = 128
"""Upper bound of `n`, as in OpenAI's API."""


@dataclass(frozen=True)
class Defaults:
    """Default parameters of requests.

    Attributes:
        family: of the model.
        algorithm: canonical name of the server's algorithm.
        values: by field name of `SamplingParams`, without None.
        block_length: used if neither the request nor `values` sets one.
    """

    family: Family
    algorithm: str
    values: Mapping[str, Any]
    block_length: int

    @classmethod
    def of(cls, family: Family, block_length: int | None, algorithm: str, values: Mapping[str, Any]) -> Defaults:
        """Raises `RequestError` if the family cannot run the algorithm or a value is out of range."""
        name = resolve(algorithm, family)
        given = {key: value for key, value in values.items() if value is not None}
        SamplingParams(**given)
        return cls(family, name, given, block_length or int(BLOCK_LENGTH))

    def params(self, given: Mapping[str, Any], limit: int | None, *, record: bool = False) -> SamplingParams:
        """Parameters of a request.

        The canvas length is `gen_length` if given, else `limit` rounded up to whole blocks, else the server's default.

        Args:
            given: fields of the body.
            limit: maximum number of tokens returned.
            record: record log-probabilities.

        Raises `ApiError` (400) listing every fault, with the field of the first.
        """
        try:
            name = resolve(given.get("algorithm") or self.algorithm, self.family)
        except RequestError as error:
            raise ApiError(400, str(error), param="generation_algorithm", code="unknown_algorithm") from error
        values = {key: value for key, value in self.values.items() if self._applies(key, name, given)}
        values |= dict(given) | {"algorithm": name, "max_tokens": limit, "record": record}
        if limit is not None and not 1 <= limit <= MAX_LENGTH:
            raise ApiError(400, f"max_tokens={limit} must be a whole number, 1..{MAX_LENGTH}", param="max_tokens")
        if limit is not None and "gen_length" not in given:
            block = max(1, values.get("block_length") or self.block_length)
            values["gen_length"] = min(-(-limit // block) * block, MAX_LENGTH)
        n = values.get("n", 1)
        if isinstance(n, int) and n > MOST_SAMPLES:
            raise ApiError(400, f"n={n} must be a whole number, 1..{MOST_SAMPLES}", param="n")
        try:
            return SamplingParams(**values)
        except RequestError as error:
            raise refused(error) from error

    def _applies(self, key: str, algorithm: str, given: Mapping[str, Any]) -> bool:
        """Whether a default applies to this request: parameters of the server's algorithm do not apply to another, and
        `threshold` and `factor` exclude each other."""
        if key in (*OPTION_NAMES, "remasking") and algorithm != self.algorithm:
            return False
        return not ((key == "threshold" and "factor" in given) or (key == "factor" and "threshold" in given))


def refused(error: RequestError) -> ApiError:
    """The 400 error for a request that cannot be decoded; names the field if the message begins with one."""
    head = str(error).partition("=")[0]
    return ApiError(400, str(error), param=head if head.isidentifier() else None)
