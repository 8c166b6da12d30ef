"""RingClient for programs without asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Self

from ring.answers import Completion, GenerateEvent
from ring.client import RingClient
from ring.wire.clients import DEFAULT_HEAD, Status


class SyncRingClient:
    """RingClient for programs without asyncio: the same methods, blocking, on an event loop in a thread of its own.

    with SyncRingClient() as ring:
        print(ring.complete("def ").text)
    """

    def __init__(self, head: str = DEFAULT_HEAD, **options: Any) -> None:
        self._client = RingClient(head, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ring-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.__aexit__(None, None, None))
        self._close()

    def generate(self, prompt: str | None = None, **options: Any) -> Iterator[GenerateEvent]:
        """Blocking `RingClient.generate`; leaving the loop early cancels."""
        events: queue.SimpleQueue[GenerateEvent | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with contextlib.aclosing(self._client.generate(prompt, **options)) as stream:
                    async for event in stream:
                        events.put(event)
                events.put(None)
            except BaseException as error:
                events.put(error)

        task = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            task.cancel()

    def complete(self, prompt: str | None = None, **options: Any) -> Completion:
        """Blocking `RingClient.complete`."""
        completion: Completion = self._run(self._client.complete(prompt, **options))
        return completion

    def status(self) -> Status:
        """Blocking `RingClient.status`."""
        status: Status = self._run(self._client.status())
        return status

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
