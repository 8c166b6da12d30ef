"""One round of work through RingClient, and what is read off it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise

from ring.client import RingClient


@dataclass(slots=True)
class Round:
    """When every token came.

    `arrivals[k]` holds, for sequence k, the seconds from the start of the round at which each new token arrived.
    """

    arrivals: list[list[float]]
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """From the first request to the last token."""
        return max(times[-1] for times in self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Mean time to first token."""
        return sum(times[0] for times in self.arrivals) / len(self.arrivals)

    @property
    def decode_rate(self) -> float:
        """New tokens a second while all sequences decode: from when each has its first token until one has its last."""
        start = max(times[0] for times in self.arrivals)
        end = min(times[-1] for times in self.arrivals)
        count = sum(start < at <= end for times in self.arrivals for at in times)
        return count / (end - start) if count else 0.0

    @property
    def rate(self) -> float:
        """All new tokens over wall time, prefill included."""
        return sum(map(len, self.arrivals)) / self.wall_s

    @property
    def gaps_s(self) -> list[float]:
        """All inter-token latencies."""
        return [b - a for times in self.arrivals for a, b in pairwise(times)]


def random_prompts(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random token ids."""
    chance = random.Random(seed)
    return [[chance.randrange(1, vocabulary) for _ in range(length)] for _ in range(count)]


async def run_round(client: RingClient, prompts: list[list[int]], new_tokens: int, dense: bool = False) -> Round:
    """All prompts at once, greedily, each for exactly `new_tokens`.

    A ring prefills some prompts while others decode already. A `dense` round goes on until all sequences together have
    decoded for `new_tokens`, so that `decode_rate` is that of the full batch; only the first `new_tokens` are kept.
    """
    started = time.perf_counter()
    arrivals: list[list[float]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]

    def enough() -> bool:
        if not all(arrivals):
            return False
        start = max(times[0] for times in arrivals)
        return all(sum(at > start for at in times) >= new_tokens - 1 for times in arrivals)

    async def one(k: int) -> None:
        options = {"max_tokens": new_tokens * (8 if dense else 1), "ignore_eos": True}
        async with contextlib.aclosing(client.generate(token_ids=prompts[k], **options)) as events:  # type: ignore[arg-type]
            async for event in events:
                arrivals[k] += [time.perf_counter() - started] * len(event.token_ids)
                tokens[k] += event.token_ids
                if dense and enough():
                    return

    async def until_enough() -> None:
        tasks = [asyncio.create_task(one(k)) for k in range(len(prompts))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED if dense else asyncio.ALL_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    await until_enough()
    return Round(arrivals, [kept[:new_tokens] for kept in tokens])
