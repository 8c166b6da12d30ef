"""A request's body: bounded in size and time, and decoded strictly into a struct."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ring.gateway.errors import HANG_UP, BadRequest, GatewayError

Body = TypeVar("Body")


async def read(request: Request, limit: int, patience_s: float) -> bytes:
    """The body.

    Raises:
        GatewayError: 413 too large, 408 not all there in time, 415 not declared as JSON.
        ClientDisconnect: the client has gone.
    """
    # A browser sends a foreign page's JSON only after asking first, which is what CORS being off forbids.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise GatewayError(415, "send the header 'Content-Type: application/json'", "unsupported_media_type", headers=HANG_UP)
    too_large = GatewayError(413, f"the request's body is larger than {limit} bytes", "request_too_large", headers=HANG_UP)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(patience_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        why = f"the request's body was not complete within {patience_s:g} s"
        raise GatewayError(408, why, "request_timeout", headers=HANG_UP) from None
    return bytes(body)


def decode(raw: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """The struct that a body holds.

    Raises:
        BadRequest: not JSON, or not of that shape; names the field.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        message, path = split_path(str(error))
        raise BadRequest(message, path, "unknown_parameter" if "unknown field" in message else "invalid_value") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: bytes that are not UTF-8
        raise BadRequest(f"the request's body is not JSON: {error}", code="invalid_json") from None


def split_path(error: str) -> tuple[str, str | None]:
    """What msgspec says, and the field that it says it of: "Expected `int` - at `$.n`" is of `n`."""
    message, _, path = error.partition(" - at `")
    if unknown := re.search(r"unknown field `(.*)`", message):
        return message, unknown[1]
    return message, path.removeprefix("$").removeprefix(".").removesuffix("`") or None


__all__ = ["ClientDisconnect", "decode", "read"]
