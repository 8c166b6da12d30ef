"""From asked generations to an HTTP answer: all of them at once, whole or streamed, and cancelled when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ring.answers import Completion, GenerateEvent, RingError
from ring.client import RingClient
from ring.gateway.errors import RETRY_SOON, BadRequest, GatewayError, from_ring
from ring.gateway.upstream import Upstream
from ring.gateway.write import Form, Writer, encoder, send_json

Ask = dict[str, Any]
"""What `RingClient.generate` is called with."""

Take = Callable[[int, GenerateEvent], Awaitable[None]]
"""What is to be done with an event of the ask of that number."""

FAREWELL_S = 2.0


class Gone(Exception):
    """The client has hung up."""


class Desk:
    """Where requests are taken on: bounds how many generations run, and how long a request may take.

    Args:
        upstream: the connection to the head.
        max_requests: most generations at once.
        time_limit_s: most seconds for one request.
    """

    def __init__(self, upstream: Upstream, max_requests: int, time_limit_s: float) -> None:
        self.upstream = upstream
        self.max_requests = max_requests
        self.time_limit_s = time_limit_s
        self.running = 0
        self.draining = False
        self._limits: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def admit(self, count: int) -> AsyncIterator[None]:
        """A place for `count` generations, until the time limit.

        Raises:
            GatewayError: 503 while shutting down, 429 when full, 400 if it would never fit, 504 at the time limit.
        """
        if count > self.max_requests:
            raise BadRequest(f"these are {count} generations; this gateway runs at most {self.max_requests} at once")
        if self.draining:
            raise GatewayError(503, "the gateway is shutting down", "draining", headers=RETRY_SOON)
        if self.running + count > self.max_requests:
            why = f"the gateway is busy: {self.running} generations are running of {self.max_requests}; try again later"
            raise GatewayError(429, why, "rate_limit_exceeded", headers=RETRY_SOON)
        self.running += count
        try:
            async with asyncio.timeout(self.time_limit_s) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if self.draining:
                raise GatewayError(503, "the gateway was shut down before the answer was complete", "draining") from None
            why = f"the answer was not complete within the time limit of {self.time_limit_s:g} s"
            raise GatewayError(504, why, "timeout") from None
        finally:
            self.running -= count

    def drain(self, patience_s: float) -> None:
        """Take nothing new; what runs has so many seconds to finish."""
        self.draining = True
        latest = asyncio.get_running_loop().time() + patience_s
        for limit in self._limits:
            limit.reschedule(min(latest, limit.when() or latest))


class Answer(Response):
    """Runs `asks` when it is sent, in the form asked for; its client's hanging up cancels them on every stage."""

    media_type = "application/json"

    def __init__(self, desk: Desk, asks: list[Ask], form: Form, stream: bool) -> None:
        self.desk = desk
        self.asks = asks
        self.form = form
        self.stream = stream
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or raise a GatewayError if nothing has been sent yet."""
        answers = [Completion() for _ in self.asks]
        writer = Writer(send, self.form) if self.stream else None
        try:
            async with self.desk.admit(len(self.asks)):
                await self._run(receive, answers, writer)
                if writer is not None:
                    await writer.finish(answers)
                else:
                    await send_json(send, encoder.encode(self.form.whole(answers)))
        except Gone:
            scope["ring.failed"] = "disconnected"
        except GatewayError as error:
            scope["ring.failed"] = error.code
            if writer is None or not writer.started:
                raise
            with contextlib.suppress(TimeoutError):  # it may be late because its client does not read
                async with asyncio.timeout(FAREWELL_S):
                    await writer.fail(error)
        finally:
            scope["ring.answers"] = answers

    async def _run(self, receive: Receive, answers: list[Completion], writer: Writer | None) -> None:
        """Fill `answers`.

        Raises:
            Gone: the client has hung up.
            GatewayError: the ring failed.
        """

        async def take(index: int, event: GenerateEvent) -> None:
            answers[index].add(event)
            if writer is not None:
                await writer.write(index, event)

        try:
            client = self.desk.upstream.client()
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(notice_hangup(receive))
                await generate_all(client, self.asks, take)
                watcher.cancel()
        except RingError as error:
            raise from_ring(error) from None
        except BaseExceptionGroup as errors:
            if errors.subgroup(Gone):
                raise Gone from None
            failed, bugs = errors.split(RingError)
            if failed is None or bugs is not None:
                raise
            raise from_ring(first(failed)) from None


async def generate_all(client: RingClient, asks: list[Ask], take: Take) -> None:
    """Run all asks at once; `take` is given every event, and is never called again before it has returned. What comes for
    an ask in the meantime is one event by then, so that a client that reads slowly gets fewer, longer pieces.

    Raises:
        ExceptionGroup: of the RingErrors of asks that failed; the others are cancelled.
    """
    taking = asyncio.Lock()

    async def collect(index: int, ask: Ask) -> None:
        async with contextlib.aclosing(client.generate(**ask)) as events:
            async for event in events:
                async with taking:
                    await take(index, event)

    async with asyncio.TaskGroup() as group:
        for index, ask in enumerate(asks):
            group.create_task(collect(index, ask))


async def notice_hangup(receive: Receive) -> None:
    """Wait for the client to hang up.

    Raises:
        Gone: it has.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    raise Gone


def first(errors: BaseExceptionGroup[RingError]) -> RingError:
    """One error of a group."""
    error = errors.exceptions[0]
    return first(error) if isinstance(error, BaseExceptionGroup) else error
