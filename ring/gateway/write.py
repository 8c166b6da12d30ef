"""How an answer is written: as one JSON object, or as server-sent events while it comes."""

from __future__ import annotations

from typing import Protocol

import msgspec
from starlette.types import Send

from ring.answers import Completion, GenerateEvent
from ring.gateway.errors import GatewayError

encoder = msgspec.json.Encoder()


class Form(Protocol):
    """How the answer to one request is written."""

    def opening(self) -> list[msgspec.Struct]:
        """What a stream begins with."""

    def part(self, index: int, event: GenerateEvent) -> msgspec.Struct | None:
        """What is streamed for an event; None if it shows nothing."""

    def closing(self, answers: list[Completion]) -> list[msgspec.Struct]:
        """What a stream ends with."""

    def whole(self, answers: list[Completion]) -> msgspec.Struct:
        """The answer that is not streamed."""


class Writer:
    """Server-sent events to one client. Nothing is sent before the first tokens, so an error until then has its status."""

    def __init__(self, send: Send, form: Form) -> None:
        self.send = send
        self.form = form
        self.started = False

    async def write(self, index: int, event: GenerateEvent) -> None:
        """Send what there is to show of an event."""
        part = self.form.part(index, event)
        if part is not None:
            await self._send(frame(part))

    async def finish(self, answers: list[Completion]) -> None:
        """End the stream."""
        await self._send(b"".join(map(frame, self.form.closing(answers))) + b"data: [DONE]\n\n", more=False)

    async def fail(self, error: GatewayError) -> None:
        """End the stream with an error, as OpenAI does."""
        await self._send(frame(error.body), more=False)

    async def _send(self, body: bytes, more: bool = True) -> None:
        if not self.started:
            self.started = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
            ]
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})
            body = b"".join(map(frame, self.form.opening())) + body
        await self.send({"type": "http.response.body", "body": body, "more_body": more})


def frame(part: msgspec.Struct) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % encoder.encode(part)


async def send_json(send: Send, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
    """A whole JSON answer."""
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
