"""A ring that says what it is told to, in place of the connection to a real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx2
from starlette.applications import Starlette

from ring.answers import GenerateEvent, RingError
from ring.client import RingClient
from ring.gateway.app import Access, Gateway, Limits
from ring.wire.clients import Logprob, StageTiming, Status, Timings

TIMINGS = Timings(0.001, 0.01, 0.002, 0.05, [StageTiming(0, 3, 0.001, 0.02, 0.003, 100)])


class FakeRing(RingClient):
    """Answers every prompt with `words`, one token each; `fails` after `fails_after` of them, or waits for `go` first."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = words
        self.asked: list[dict[str, Any]] = []
        self.fails: RingError | None = None
        self.fails_after = 0
        self.go = asyncio.Event()
        self.go.set()
        self.cancelled = 0

    async def generate(self, prompt: str | None = None, **ask: Any) -> AsyncGenerator[GenerateEvent, None]:
        """What the real one does, without a ring."""
        self.asked.append({"prompt": prompt, **ask})
        try:
            for place, word in enumerate(self.words[: ask["max_tokens"]]):
                if self.fails is not None and place == self.fails_after:
                    raise self.fails
                await self.go.wait()
                rows = [[Logprob(place, -0.5, word.encode()), Logprob(99, -1.0, b"\xe2\x80")]]
                yield GenerateEvent([place], word, 1, logprobs=rows if ask.get("logprobs") is not None else [])
            yield GenerateEvent([], "", 1, "stop", 3, ask.get("seed") or 5, TIMINGS)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise


def status(state: Any = "ready", detail: str = "") -> Status:
    """A Status with nothing going on."""
    return Status(0, 1, "org/tiny", "float32", state, detail, 1, [], 512, 1000, 0, 0, 0, 0, 0.0, 0, 0, 1.0)


class Fixture:
    """A gateway in this process. `ring` is the fake, `app` what answers HTTP."""

    def __init__(self, words: list[str], limits: Limits, access: Access) -> None:
        self.ring = FakeRing(words)
        self.gateway = Gateway("tcp://127.0.0.1:9", limits, access)
        self.gateway.upstream._client = self.ring
        self.gateway.upstream.status = status()
        self.ring.status = self.now  # type: ignore[method-assign]
        self.app: Starlette = self.gateway.app()
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app), base_url="http://localhost")

    async def now(self) -> Status:
        """The ring's status."""
        assert self.gateway.upstream.status is not None
        return self.gateway.upstream.status

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        """A request with a JSON body."""
        return await self.http.post(path, json=body)


@contextlib.asynccontextmanager
async def gateway(
    words: list[str] | None = None, limits: Limits | None = None, access: Access | None = None
) -> AsyncIterator[Fixture]:
    """A gateway with a fake ring behind it."""
    fixture = Fixture(words or ["Hel", "lo", "!"], limits or Limits(), access or Access())
    async with fixture.http:
        yield fixture
