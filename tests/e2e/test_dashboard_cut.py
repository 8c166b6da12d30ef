"""The dashboard while a cable is cut: the one between it and the head, and one of the ring's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring.client import RingClient
from tests.e2e.harness import NodeRing
from tests.e2e.proxy import Cable
from tests.e2e.test_dashboard import bare, right_pane
from tests.tui.terminal import Terminal

PROMPT = "def fibonacci(n):"
TOKENS = 900
"""Enough for some seconds."""


@pytest.fixture
def inner() -> Iterator[Cable]:
    """From the last node to the first."""
    with Cable(0) as cable:
        yield cable


@pytest.fixture
def ring(pocket: Path, inner: Cable) -> Iterator[NodeRing]:
    ring = NodeRing(pocket, 2)
    inner.target = ring.ports[0]
    ring.next[1] = f"tcp://127.0.0.1:{inner.port}"
    with ring:
        yield ring


def test_it_comes_through_a_cut_to_the_head_and_a_cut_in_the_ring(ring: NodeRing, inner: Cable) -> None:
    async def whole() -> str:
        async with RingClient(ring.clients) as client:
            return (await client.complete(PROMPT, max_tokens=TOKENS)).text

    async def run() -> None:
        undisturbed = bare(await whole())
        with (
            Cable(int(ring.clients.rpartition(":")[2])) as outer,
            Terminal(["tui", "--head", f"tcp://127.0.0.1:{outer.port}"]) as terminal,
        ):
            await terminal.until("✓ idle", "Type a prompt")
            terminal.keys("\x0f")
            await terminal.until("sampling of the next prompts")
            terminal.keys(f"{TOKENS}\r")
            await terminal.until(f"max {TOKENS} tokens")
            terminal.keys(f"{PROMPT}\r")
            await terminal.until("decode")
            outer.cut()
            await terminal.until("Head lost, reconnecting", "attempt 1", "paused")
            outer.mend()
            await terminal.until("✓", "max len", f"{TOKENS} tokens")
            assert undisturbed[-60:] in right_pane(terminal.text), "the answer goes on as if nothing had happened"

            terminal.keys(f"{PROMPT}\r")
            await terminal.until("decode")
            inner.cut()
            await terminal.until("1 stream of yours waits", "paused")
            inner.mend()
            async with asyncio.timeout(60):
                while terminal.text.count("max len") < 2:
                    await asyncio.sleep(0.05)
            assert undisturbed[-60:] in right_pane(await terminal.until("✓"))
            terminal.keys("\x1b")
            await terminal.until("x Cancel")
            terminal.keys("4")
            await terminal.until("the head is gone; reconnecting", "the head is back", "the ring has formed")
            terminal.keys("q")
            assert await terminal.ended() == 0

    asyncio.run(run())
