"""How long a ring takes to recover, step by step: `make recovery` prints the table that the README states.

A three-node ring of the pocket model on loopback with a watched stream; times in milliseconds from the blow: until the
head has noticed, until the ring has formed again, until the next token. Ten blows each; median and range.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from ring.client import RingClient
from ring.wire.clients import Event
from tests.e2e.harness import NodeRing
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split

BLOWS = 10

Blow = Callable[[NodeRing], None]


@dataclass
class Times:
    """Milliseconds of every blow."""

    detect: list[float] = field(default_factory=list)
    heal: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)


async def measure(ring: NodeRing, strike: Blow, times: Times) -> None:
    """One blow against a ring with a stream, and the three times after it."""
    seen: dict[str, float] = {}
    async with RingClient(ring.clients) as client:

        async def watch() -> None:
            async for trace in client.traces():
                if isinstance(trace, Event) and "is gone" in trace.message:
                    seen.setdefault("detect", time.monotonic())
                elif isinstance(trace, Event) and "has formed" in trace.message:
                    seen.setdefault("heal", time.monotonic())

        watching = asyncio.create_task(watch())
        struck, count = 0.0, 0
        async for event in client.generate("def ", max_tokens=900, ignore_eos=True):
            count += len(event.token_ids)
            if count >= 20 and not struck:
                struck = time.monotonic()
                strike(ring)
            elif event.token_ids and "heal" in seen:
                seen["token"] = time.monotonic()
                break
        watching.cancel()
    for name in ("detect", "heal", "token"):
        getattr(times, name).append((seen[name] - struck) * 1e3)


def killed_and_restarted(ring: NodeRing) -> None:
    """`kill -9`, and a new process at once, whose imports are done already."""
    ring.nodes[1].kill()
    ring.start(1)


def killed_with_a_spare(ring: NodeRing) -> None:
    """`kill -9`; a spare waits."""
    ring.nodes[1].kill()


def stopped_with_a_spare(ring: NodeRing) -> None:
    """SIGSTOP, as when a machine hangs or its cable is pulled; a spare waits."""
    ring.nodes[1].send_signal(signal.SIGSTOP)


async def until_spare(ring: NodeRing) -> None:
    """Until the head knows of a spare."""
    async with RingClient(ring.clients) as client:
        while not (await client.status()).spares:
            await asyncio.sleep(0.05)


def main() -> None:
    """All three cases."""
    table = Table("blow", "noticed ms", "formed ms", "next token ms")
    with tempfile.TemporaryDirectory(prefix="ring-recovery-") as folder:
        split(str(pocket_path()), Path(folder) / "shards", stages=3)
        for strike in (killed_and_restarted, killed_with_a_spare, stopped_with_a_spare):
            times = Times()
            for _ in range(BLOWS):
                with NodeRing(Path(folder) / "shards", 3) as ring:
                    if strike is not killed_and_restarted:
                        ring.start_spare(1)
                        asyncio.run(until_spare(ring))
                    asyncio.run(measure(ring, strike, times))
                    ring.nodes[1].send_signal(signal.SIGCONT)
            cells = [f"{median(v):.0f} ({min(v):.0f}-{max(v):.0f})" for v in (times.detect, times.heal, times.token)]
            table.add_row(strike.__name__.replace("_", " "), *cells)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
