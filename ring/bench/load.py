"""One round of work through RingClient, and what is read off it."""

from __future__ import annotations

import asyncio
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
        """New tokens a second from the moment when every sequence has its first until the last token."""
        start = max(times[0] for times in self.arrivals)
        count = sum(at > start for times in self.arrivals for at in times)
        return count / (self.wall_s - start) if count else 0.0

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


async def run_round(client: RingClient, prompts: list[list[int]], new_tokens: int, temperature: float = 0.0) -> Round:
    """All prompts at once, greedily, each for exactly `new_tokens`."""
    started = time.perf_counter()

    async def one(prompt: list[int]) -> tuple[list[float], list[int]]:
        times, tokens = [], []
        options = {"max_tokens": new_tokens, "ignore_eos": True, "temperature": temperature, "seed": 1}
        async for event in client.generate(token_ids=prompt, **options):  # type: ignore[arg-type]
            times += [time.perf_counter() - started] * len(event.token_ids)
            tokens += event.token_ids
        return times, tokens

    done = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return Round([times for times, _ in done], [tokens for _, tokens in done])
