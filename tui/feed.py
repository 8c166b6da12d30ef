"""Where the messages come from: a live head, by way of RingClient. Everything here waits beside the display."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ring.answers import NoHead, RingError, WrongKeys
from ring.client import RingClient
from tui.messages import Asked, Ended, Grew, Link, Message, Options

STATUS_S = 1.0
RETRY_S = 0.5
TIMEOUT_S = 3.0
GATHER_S = 0.05

Take = Callable[[Message], None]


class Feed(Protocol):
    """A source of messages: a head or a recording."""

    take: Take
    name: str
    """What it reads: an address or a file."""
    started: float
    """When its clock was 0, in seconds since 1970."""

    def now(self) -> float:
        """Seconds on the feed's own clock."""

    async def run(self) -> None:
        """Hand messages to `take` until cancelled."""

    async def ask(self, stream: int, prompt: str, options: Options) -> None:
        """Send a prompt and follow its answer; cancelling this cancels it on every stage."""


def ignore(message: Message) -> None:
    """What is done with messages before anyone listens."""


class LiveFeed:
    """A head, polled and followed; reconnects for ever."""

    def __init__(self, head: str, keys: Path | None = None, insecure: bool = False) -> None:
        self.name = head
        self.keys = keys
        self.insecure = insecure
        self.take: Take = ignore
        self.started = time.time()
        self._began = time.monotonic()
        self._client: RingClient | None = None
        self._connected = asyncio.Event()

    def now(self) -> float:
        """Seconds since the dashboard started."""
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Connect, poll the status once a second and follow laps and events, whether the head goes away or not."""
        known, attempt = False, 0
        while True:
            attempt += 1
            self.take(Link("lost" if known else "connecting", attempt))
            try:
                async with RingClient(
                    self.name,
                    timeout=TIMEOUT_S,
                    keys=self.keys,
                    insecure=self.insecure,
                    coalesce=False,
                    gather=GATHER_S,
                ) as client:
                    self.take(Link("connected"))
                    known, attempt, self._client = True, 0, client
                    self._connected.set()
                    await self._follow(client)
            except WrongKeys as error:
                await self._refused(attempt, error)
            except NoHead:
                pass
            except RingError as error:
                await self._refused(attempt, error)
            finally:
                self._client = None
                self._connected.clear()
            await asyncio.sleep(RETRY_S)

    async def _refused(self, attempt: int, error: RingError) -> None:
        """Say why this head cannot be used, and let some time pass."""
        self.take(Link("refused", attempt, str(error)))
        await asyncio.sleep(TIMEOUT_S)

    async def _follow(self, client: RingClient) -> None:
        """Until the head returns as one that cannot be used. While it is away, its streams wait with their client."""
        while True:
            try:
                await self._listen(client)
            except WrongKeys:
                raise
            except NoHead:
                self._connected.clear()
                await self._return(client)
                self.take(Link("connected"))
                self._connected.set()

    async def _return(self, client: RingClient) -> None:
        """Ask until the head answers again."""
        attempt = 1
        while True:
            self.take(Link("lost", attempt))
            try:
                await client.status()
                return
            except WrongKeys:
                raise
            except NoHead:
                pass
            attempt += 1

    async def _listen(self, client: RingClient) -> None:
        """Take what the head says, until it is gone, which raises."""

        async def poll() -> None:
            while True:
                self.take(await client.status())
                await asyncio.sleep(STATUS_S)

        async def watch() -> None:
            async with contextlib.aclosing(client.traces()) as traces:
                async for trace in traces:
                    self.take(trace)

        # Neither a TaskGroup nor gather: one that is just failing swallows its own cancellation.
        tasks = [asyncio.create_task(watch()), asyncio.create_task(poll())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, stream: int, prompt: str, options: Options) -> None:
        """Send a prompt, once there is a head; every way that it can end becomes an Ended."""
        self.take(Asked(stream, prompt, options))
        try:
            await self._connected.wait()
            assert self._client is not None
            arguments = {name: getattr(options, name) for name in options.__struct_fields__}
            async with contextlib.aclosing(self._client.generate(prompt, **arguments)) as events:
                async for event in events:
                    if event.notice:
                        continue  # the head tells of it in an Event too
                    self.take(Grew(stream, event.sequence, len(event.token_ids), event.text))
                    if event.finish_reason is not None:
                        last = (event.prompt_tokens, event.seed, event.timings)
                        self.take(Ended(stream, event.finish_reason, "", "", *last))
        except RingError as error:
            self.take(Ended(stream, "failed", error.code, str(error)))
        except asyncio.CancelledError:
            self.take(Ended(stream, "cancelled"))
            raise
