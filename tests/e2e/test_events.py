"""What a watcher is told besides laps: requests refused, and clients that went away."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import zmq.asyncio

from ring.answers import RingError
from ring.client import RingClient
from ring.wire.clients import Event, Generate, Lap, encoder
from tests.e2e.harness import NodeRing


async def next_event(traces: asyncio.Queue[Lap | Event], words: str) -> Event:
    async with asyncio.timeout(30):
        while True:
            trace = await traces.get()
            if isinstance(trace, Event) and words in trace.message:
                return trace


def test_a_watcher_hears_of_refused_and_of_dropped_requests(llama: Path) -> None:
    async def run(ring: NodeRing) -> None:
        traces: asyncio.Queue[Lap | Event] = asyncio.Queue()

        async def watch(client: RingClient) -> None:
            async with contextlib.aclosing(client.traces()) as stream:
                async for trace in stream:
                    traces.put_nowait(trace)

        async with RingClient(ring.clients) as client:
            watcher = asyncio.create_task(watch(client))
            await client.complete(token_ids=[1, 2], max_tokens=2)
            with pytest.raises(RingError):
                await client.complete(token_ids=[1] * 5000, max_tokens=2)
            refused = await next_event(traces, "a request was refused: the prompt has 5000 tokens")
            assert (refused.severity, refused.stage) == ("warning", -1)
            context: zmq.asyncio.Context = zmq.asyncio.Context()
            stranger = context.socket(zmq.DEALER)
            stranger.connect(ring.clients)
            await stranger.send(encoder.encode(Generate(request=1, token_ids=[1, 2], max_tokens=500, ignore_eos=True)))
            await stranger.recv()
            context.destroy(linger=0)
            dropped = await next_event(traces, "was dropped")
            assert dropped.severity == "warning"
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    with NodeRing(llama / "shards-1", 1) as ring:
        asyncio.run(run(ring))
