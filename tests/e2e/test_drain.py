"""Orderly change: what runs finishes, nothing new is taken."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from ring.answers import Completion, RingError
from ring.client import RingClient
from tests.e2e.harness import NodeRing


async def start_stream(client: RingClient, max_tokens: int = 300) -> asyncio.Task[Completion]:
    """A generation that has begun."""
    begun = asyncio.Event()

    async def run() -> Completion:
        completion = Completion()
        async for event in client.generate(token_ids=[1, 2, 3], max_tokens=max_tokens):
            completion.add(event)
            begun.set()
        return completion

    task = asyncio.create_task(run())
    await begun.wait()
    return task


def test_a_draining_ring_finishes_and_takes_nothing_new_until_told(llama: Path) -> None:
    async def run(ring: NodeRing) -> None:
        async with RingClient(ring.clients) as client:
            stream = await start_stream(client)
            status = await client.drain()
            assert (status.draining, status.running) == (True, 1)
            with pytest.raises(RingError, match="being drained") as caught:
                await client.complete(token_ids=[1], max_tokens=1)
            assert caught.value.code == "draining"
            assert len((await stream).token_ids) == 300
            assert not (await client.drain(False)).draining
            assert len((await client.complete(token_ids=[1], max_tokens=1)).token_ids) == 1

    with NodeRing(llama / "shards-3", 3) as ring:
        asyncio.run(asyncio.wait_for(run(ring), 60))


def test_sigterm_lets_the_head_finish_its_streams(llama: Path) -> None:
    async def run(ring: NodeRing) -> None:
        async with RingClient(ring.clients, recovery_timeout=5.0) as client:
            stream = await start_stream(client)
            ring.nodes[0].send_signal(signal.SIGTERM)
            assert len((await stream).token_ids) == 300
            assert await asyncio.to_thread(ring.nodes[0].wait) == 0

    with NodeRing(llama / "shards-3", 3) as ring:
        asyncio.run(asyncio.wait_for(run(ring), 60))


def test_sigterm_twice_does_not_wait(llama: Path) -> None:
    async def run(ring: NodeRing) -> None:
        async with RingClient(ring.clients, recovery_timeout=0.1) as client:
            stream = await start_stream(client, 500)
            ring.nodes[0].send_signal(signal.SIGSTOP)
            ring.nodes[0].send_signal(signal.SIGTERM)
            ring.nodes[0].send_signal(signal.SIGCONT)
            while "draining" not in ring.log(0):
                await asyncio.sleep(0.01)
            ring.nodes[0].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(ring.nodes[0].wait) == 0
            await asyncio.gather(stream, return_exceptions=True)

    with NodeRing(llama / "shards-3", 3) as ring:
        asyncio.run(asyncio.wait_for(run(ring), 60))
