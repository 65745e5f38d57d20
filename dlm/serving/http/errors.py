"""HTTP errors: one exception class, with OpenAI's error body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID, AUTHENTICATION, NOT_FOUND = "invalid_request_error", "authentication_error", "not_found_error"
OVERLOADED, TIMEOUT, SERVER = "rate_limit_error", "timeout_error", "server_error"
CONFLICT, PERMISSION = "conflict_error", "permission_error"


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: names the field, its value and the remedy; no prompt text, no traceback.
        kind: OpenAI's `type`.
        param: the invalid field.
        code: OpenAI's machine-readable code.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def overloaded(message: str, seconds: int) -> ApiError:
    """429: retry after `seconds`."""
    return ApiError(429, message, OVERLOADED, code="queue_full", headers={"Retry-After": str(seconds)})


def draining() -> ApiError:
    """503: the server accepts no new requests."""
    return ApiError(503, "the server is shutting down; use another server, or retry later", SERVER)


def unavailable(message: str) -> ApiError:
    """503: decoding is unavailable, since the weights are asleep or only partly updated."""
    return ApiError(503, message, SERVER, code="weights_unavailable")


def not_finite(message: str) -> ApiError:
    """500: the model's logits were not finite for this request."""
    return ApiError(500, message, SERVER, code="not_finite")


def aborted(message: str) -> ApiError:
    """503: the request was aborted through the weight-control routes."""
    return ApiError(503, message, SERVER, code="aborted")


def plain(status: int, detail: str, method: str, path: str) -> ApiError:
    """Errors raised by the frameworks: unknown path, wrong method."""
    return ApiError(
        status, f"{detail}: {method} {path:.80}; see /openapi.json", NOT_FOUND if status == 404 else INVALID
    )


def unexpected(error: Exception) -> ApiError:
    """500: an unexpected error; the caller logs it."""
    return ApiError(500, f"this request failed ({type(error).__name__}); see the server's log", SERVER)


def timed_out(seconds: float) -> ApiError:
    """504: a request exceeded the server's timeout."""
    return ApiError(504, f"no answer within request_timeout={seconds:g} seconds", TIMEOUT, code="timeout")


def out_of_memory() -> ApiError:
    """503: this request did not fit into memory, even on its own."""
    return ApiError(503, "this request did not fit into memory; shorten it or try again", SERVER, code="out_of_memory")
