"""What goes wrong, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with the HTTP status that fits."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ring.answers import RingError


class ErrorDetail(msgspec.Struct):
    """`message` is one sentence; `param` names the request's field at fault, `code` the kind of error for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not 2xx, and of an `error` within a stream."""

    error: ErrorDetail


class GatewayError(Exception):
    """An error that the caller is told of."""

    def __init__(
        self, status: int, message: str, code: str | None, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> ErrorBody:
        """As it is sent."""
        return ErrorBody(ErrorDetail(str(self), TYPES.get(self.status, default_type(self.status)), self.param, self.code))


class BadRequest(GatewayError):
    """400: the request says something that cannot be done."""

    def __init__(self, message: str, param: str | None = None, code: str | None = "invalid_value") -> None:
        super().__init__(400, message, code, param)


TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_SOON = {"Retry-After": "1"}
HANG_UP = {"Connection": "close"}  # what is left of the request's body will not be read

# What the head says (or RingClient, for `no_head` and `version`): status and OpenAI's code for it.
FAILURES: dict[str, tuple[int, str, Mapping[str, str]]] = {
    "busy": (429, "rate_limit_exceeded", RETRY_SOON),
    "too_long": (400, "context_length_exceeded", {}),
    "bad_request": (400, "invalid_value", {}),
    "stage_failed": (502, "stage_failed", {}),
    "draining": (503, "draining", RETRY_SOON),
    "no_head": (503, "no_head", RETRY_SOON),
    "version": (503, "version", {}),
}


def default_type(status: int) -> str:
    """OpenAI's `type` of an error with this status."""
    return "server_error" if status >= 500 else "invalid_request_error"


def from_ring(error: RingError) -> GatewayError:
    """What a failed request of the ring is over HTTP."""
    status, code, headers = FAILURES.get(error.code, (502, error.code, {}))
    return GatewayError(status, str(error), code, headers=headers)
