"""A loaded ring under random kills, stops, cancels, disconnects and bad clients: `make soak`, minutes, bounded.

In the end every request has had exactly one outcome, finished ones have the tokens of an undisturbed run, and the nodes'
memory and file descriptors are back where they were. The seed is printed; `--seed` repeats the same choices.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from rich.console import Console

from ring.answers import RingError
from ring.client import RingClient
from tests.e2e.harness import NodeRing
from tests.e2e.test_kill import at_rest, until
from tests.models import make_checkpoint, ragged_prompts
from weights_tools.split import split

CLIENTS = 12
PROMPTS = ragged_prompts(40, longest=300, seed=8)
console = Console(highlight=False, soft_wrap=True)


def request(number: int) -> dict[str, Any]:
    """The options of the prompt with this number: half are greedy, half sampled."""
    options: dict[str, Any] = {"token_ids": PROMPTS[number], "max_tokens": 20 + number * 2}
    return options | ({"temperature": 0.9, "seed": number} if number % 2 else {})


async def user(
    ring: NodeRing, chance: random.Random, expected: list[list[int]], until_s: float, outcomes: Counter[str]
) -> None:
    """Asks, reads, sometimes leaves early, until the time is over."""
    while time.monotonic() < until_s:
        with contextlib.suppress(RingError):
            async with RingClient(ring.clients) as client:
                for _ in range(chance.randrange(1, 8)):
                    outcomes[await one_request(client, chance, expected)] += 1


async def one_request(client: RingClient, chance: random.Random, expected: list[list[int]]) -> str:
    """One request; returns its outcome."""
    number = chance.randrange(len(PROMPTS))
    leave_after = chance.randrange(60) if chance.random() < 0.2 else 10**9
    tokens: list[int] = []
    try:
        async with contextlib.aclosing(client.generate(**request(number))) as events:
            async for event in events:
                tokens += event.token_ids
                if event.finish_reason is not None:
                    return "finished" if tokens == expected[number] else "WRONG"
                if len(tokens) > leave_after:
                    return "left" if tokens == expected[number][: len(tokens)] else "WRONG"
    except RingError as error:
        return error.code
    return "LOST"


async def trouble(ring: NodeRing, chance: random.Random, until_s: float, done: Counter[str]) -> None:
    """Kills, stops and strangers, now and then."""
    while time.monotonic() < until_s:
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        stage = chance.choice([0, 1, 1, 2, 2])
        what = chance.choice(["kill", "stop", "stranger"])
        done[what] += 1
        if what == "kill":
            ring.nodes[stage].kill()
            ring.start(stage)
        elif what == "stop":
            ring.nodes[stage].send_signal(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.1, 3.0))
            ring.nodes[stage].send_signal(signal.SIGCONT)
        else:
            address = urlsplit(chance.choice([ring.address(stage), ring.clients]))
            with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=1) as raw:
                raw.sendall(os.urandom(chance.randrange(1, 5000)))


def footprint(ring: NodeRing) -> list[tuple[float, int]]:
    """Resident megabytes and open file descriptors of every node."""
    nodes = [psutil.Process(node.pid) for _, node in sorted(ring.nodes.items())]
    return [(node.memory_info().rss / 1e6, node.num_fds()) for node in nodes]


async def soak(ring: NodeRing, seconds: float, seed: int) -> None:
    """All of it."""
    async with RingClient(ring.clients) as client:
        expected = [(await client.complete(**request(number))).token_ids for number in range(len(PROMPTS))]
        await asyncio.gather(*(client.complete(**request(number)) for number in range(len(PROMPTS))))
    await until(ring, at_rest)
    before = footprint(ring)
    outcomes: Counter[str] = Counter()
    troubles: Counter[str] = Counter()
    end = time.monotonic() + seconds
    chances = [random.Random(f"{seed}-{number}") for number in range(CLIENTS + 1)]
    async with asyncio.TaskGroup() as group:
        for chance in chances[1:]:
            group.create_task(user(ring, chance, expected, end, outcomes))
        group.create_task(trouble(ring, chances[0], end, troubles))
    await asyncio.wait_for(until(ring, at_rest), 60)
    console.print(f"troubles: {dict(troubles)}; outcomes: {dict(outcomes)}")
    for stage, (first, last) in enumerate(zip(before, footprint(ring), strict=True)):
        console.print(f"stage {stage}: {first[0]:.0f} -> {last[0]:.0f} MB, {first[1]} -> {last[1]} file descriptors")
        assert last[0] < first[0] * 1.2 + 50 and last[1] <= first[1] + 5
    assert not outcomes["WRONG"] and not outcomes["LOST"] and outcomes["finished"]
    console.print("every request had one outcome, and every token was right")


def main() -> None:
    """Start a ring and soak it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    console.print(f"seed {options.seed}, {options.seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="ring-soak-") as folder:
        make_checkpoint(Path(folder) / "checkpoint")
        split(str(Path(folder) / "checkpoint"), Path(folder) / "shards", stages=3)
        with NodeRing(Path(folder) / "shards", 3) as ring:
            asyncio.run(soak(ring, options.seconds, options.seed))


if __name__ == "__main__":
    main()
