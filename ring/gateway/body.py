"""A request's body: bounded in size and time, and decoded strictly into a struct."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ring.gateway.errors import HANG_UP, BadRequest, GatewayError

DISCARD_S = 1.0

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
        raise GatewayError(415, "send the header 'Content-Type: application/json'", "unsupported_media_type")
    too_large = GatewayError(413, f"the request's body is larger than {limit} bytes", "request_too_large", headers=HANG_UP)
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    try:
        async with asyncio.timeout(patience_s):
            if declared.isdigit() and int(declared) > limit:
                await discard(request)
                raise too_large
            async with contextlib.aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > limit:
                        break
            if len(body) > limit:
                await discard(request)
                raise too_large
    except TimeoutError:
        why = f"the request's body was not complete within {patience_s:g} s"
        raise GatewayError(408, why, "request_timeout", headers=HANG_UP) from None
    return bytes(body)


async def discard(request: Request) -> None:
    """Read for a moment what comes, and forget it. Hanging up on a client that is sending can lose the answer on its way;
    one that has asked first (`Expect: 100-continue`) is not sending."""
    if "expect" in request.headers:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while (message := await request.receive())["type"] == "http.request" and message.get("more_body", False):
                pass


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
