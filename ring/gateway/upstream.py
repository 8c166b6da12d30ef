"""The gateway's connection to the head: it comes back whenever the head does, and knows what state the ring is in."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from ring.answers import NoHead, RingError
from ring.client import RingClient
from ring.wire.clients import Lap, Status

log = logging.getLogger("ring")

POLL_S = 0.5
PATIENCE_S = 2.0


class Upstream:
    """A RingClient that outlives the head: answers that are under way go on when it returns, others are refused meanwhile.

    Args:
        head: its address.
        observe: is given every lap of the ring.
        keys: the folder of this machine's keys, for a head that asks for them.
        insecure: talk to a head on another machine without keys.
    """

    def __init__(self, head: str, observe: Callable[[Lap], None], keys: Path | None = None, insecure: bool = False) -> None:
        self.head = head
        self.observe = observe
        self.keys = keys
        self.insecure = insecure
        self.status: Status | None = None
        self.problem = f"stage 0 (the head) has not answered yet at {head}"
        self._client: RingClient | None = None

    def client(self) -> RingClient:
        """The connection, for a request.

        Raises:
            NoHead: the head is not there.
        """
        if self._client is None or self.status is None:
            raise NoHead(self.problem)
        return self._client

    async def refresh(self) -> Status | None:
        """The ring at this moment, or None with `problem` set."""
        if self._client is not None:
            try:
                self._know(await self._client.status())
            except RingError as error:
                self._lost(error)
        return self.status

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            try:
                async with RingClient(self.head, timeout=PATIENCE_S, keys=self.keys, insecure=self.insecure) as client:
                    self._client = client
                    poll = asyncio.create_task(self._poll())
                    try:
                        await self._watch(client)
                    finally:
                        poll.cancel()
                        self._client = None
            except RingError as error:
                self._lost(error)
            await asyncio.sleep(POLL_S)

    async def _watch(self, client: RingClient) -> None:
        """Until the head has been away for too long."""
        while True:
            try:
                async with contextlib.aclosing(client.traces()) as traces:
                    async for trace in traces:
                        if isinstance(trace, Lap):
                            self.observe(trace)
                        else:
                            log.info("the ring: %s", trace.message)
                            await self.refresh()
            except NoHead as error:
                self._lost(error)
                await client.recovered()
                await self.refresh()

    async def _poll(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S)

    def _know(self, status: Status) -> None:
        if self.status is None:
            log.info("connected to the head at %s, which serves %s", self.head, status.model)
        self.status, self.problem = status, ""

    def _lost(self, error: RingError) -> None:
        gone = isinstance(error, NoHead)
        problem = f"stage 0 (the head) does not answer at {self.head}" if gone else str(error)
        if problem != self.problem:
            log.warning("%s", problem)
        self.status, self.problem = None, problem
