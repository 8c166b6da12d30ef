"""Guessing ahead changes how many laps an answer takes, and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ring.client import RingClient
from ring.wire.clients import Lap
from tests.e2e.harness import NodeRing

QUOTE = "def area(self, width, height):\n    return self.width * self.height\n\n" * 3
PROMPTS = [QUOTE, "import os\nimport sys\n", "x = [1, 2, 3, 1, 2, 3, 1, 2, 3, "]
WAYS: list[dict[str, Any]] = [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}]


async def answer(clients: str) -> tuple[list[list[int]], int, int]:
    """All answers, each alone; how many tokens they have, and how many laps they took."""
    laps = 0

    async def watch(client: RingClient) -> None:
        nonlocal laps
        async for item in client.traces():
            laps += isinstance(item, Lap) and not item.runs[0].prefill

    async with RingClient(clients) as client:
        watcher = asyncio.create_task(watch(client))
        await client.status()
        tokens = []
        for way in WAYS:
            for prompt in PROMPTS:
                tokens.append((await client.complete(prompt, max_tokens=80, ignore_eos=True, **way)).token_ids)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return tokens, sum(map(len, tokens)), laps


@pytest.fixture(scope="module")
def plain(pocket: Path) -> tuple[list[list[int]], int, int]:
    with NodeRing(pocket, 2, "--no-speculate") as ring:
        return asyncio.run(answer(ring.clients))


def test_output_is_unchanged_token_for_token(pocket: Path, plain: tuple[list[list[int]], int, int]) -> None:
    with NodeRing(pocket, 2) as ring:
        tokens, count, laps = asyncio.run(answer(ring.clients))
    assert tokens == plain[0]
    assert count == plain[1] and laps < 0.9 * plain[2], "guesses must have saved laps, or this proves nothing"
