"""A head without a ring: the real client protocol on a real ROUTER socket, saying what a test wants it to say."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio

from ring.launch import free_ports
from ring.wire.clients import (
    Cancel,
    ClientMessage,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Generate,
    GetStatus,
    HeadMessage,
    Lap,
    Severity,
    Status,
    Tokens,
    Watch,
    client_decoder,
    encoder,
)
from tests.tui.scenes import pipeline, status, timings


class FakeHead:
    """Serves `status` to whoever asks; generations go on only as a test tells them to.

    Args:
        address: where to bind; a free port of loopback by default.
        protocol: the version that it claims to speak.
    """

    def __init__(self, address: str | None = None, protocol: int | None = None) -> None:
        self.address = address or f"tcp://127.0.0.1:{free_ports(1)[0]}"
        self.status: Status = status()
        if protocol is not None:
            self.status.protocol = protocol
        self.asked: list[Generate] = []
        self.cancelled: list[int] = []
        self.watching = asyncio.Event()
        self._clients: dict[int, bytes] = {}
        self._watchers: dict[bytes, int] = {}
        self._tokens: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        self._context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(self.address)
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _serve(self) -> None:
        while True:
            client, frame = await self._router.recv_multipart()
            message: ClientMessage = client_decoder.decode(frame)
            if isinstance(message, GetStatus):
                self._send(client, msgspec.structs.replace(self.status, request=message.request))
            elif isinstance(message, Watch):
                if message.on:
                    self._watchers[client] = message.request
                    self.watching.set()
                else:
                    self._watchers.pop(client, None)
            elif isinstance(message, Generate):
                self._clients[message.request] = client
                self.asked.append(message)
            elif isinstance(message, Cancel):
                self.cancelled.append(message.request)

    def _send(self, client: bytes, message: HeadMessage) -> None:
        self._router.send_multipart([client, encoder.encode(message)])

    # ---- what a test has it say; `index` counts the prompts that were asked ----

    def tokens(self, index: int, *texts: str) -> None:
        """One token for each text."""
        request = self.asked[index].request
        for text in texts:
            self._tokens[request] = self._tokens.get(request, 0) + 1
            self._send(self._clients[request], Tokens(request, index + 1, [7], text))

    def finish(self, index: int, reason: FinishReason = "stop", prompt_tokens: int = 600) -> None:
        """The end of a generation."""
        request = self.asked[index].request
        end = timings(max(2, self._tokens.get(request, 0)))
        self._send(self._clients[request], Finished(request, index + 1, "", reason, prompt_tokens, 99, end))

    def fail(self, index: int, code: FailureCode, message: str) -> None:
        """A generation that could not be done."""
        request = self.asked[index].request
        self._send(self._clients[request], Failed(request, code, message))

    def event(self, severity: Severity, stage: int, message: str) -> None:
        """Something happened."""
        for client, request in self._watchers.items():
            self._send(client, Event(request, time.time(), severity, stage, message))

    def laps(self, count: int, **options: Any) -> list[Lap]:
        """So many laps of the made-up pipeline."""
        laps = pipeline(count, **options)
        for lap in laps:
            self.lap(lap)
        return laps

    def lap(self, lap: Lap) -> None:
        """One lap came round."""
        for client, request in self._watchers.items():
            self._send(client, msgspec.structs.replace(lap, request=request))
