"""The same work through a ring and through transformers, in turns, in the same minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from ring.bench.load import random_prompts, run_round
from ring.bench.nodes import BenchRing
from ring.bench.reference import Reference
from ring.bench.shapes import checkpoint, shards
from ring.client import RingClient
from weights_tools.checkpoint import load_config


@dataclass(slots=True)
class Comparison:
    """Decode rates (new tokens a second) of the ring and of transformers, one pair a repeat, and how many tokens agree."""

    shape: str
    dtype: str
    nodes: int
    batch: int
    prompt: int
    new_tokens: int
    ring: list[float]
    transformers: list[float]
    same_tokens: float

    @property
    def ratios(self) -> list[float]:
        """Ring over transformers, for each pair of neighbours in time."""
        return [a / b for a, b in zip(self.ring, self.transformers, strict=True)]


def compare(
    shape: str,
    dtype: str,
    nodes: int,
    batches: list[int],
    prompt: int,
    new_tokens: int,
    repeats: int,
    threads: int,
    options: list[str],
    say: Callable[[str], None],
) -> Iterator[Comparison]:
    """Measure every batch size, and yield each as soon as it is known.

    transformers gets as many threads as all nodes together have.
    """
    source = checkpoint(shape, dtype)
    vocabulary = load_config(source).vocab_size
    folder = shards(source, nodes, dtype, say)
    node_options = ["--threads", str(threads), "--kv-memory", "1G", "--no-speculate", *options]
    with BenchRing(folder, nodes, node_options) as ring, Reference(source, dtype, threads * nodes) as reference:

        async def measure(batch: int) -> Comparison:
            prompts = random_prompts(batch, prompt, vocabulary)
            result = Comparison(shape, dtype, nodes, batch, prompt, new_tokens, [], [], 0.0)
            async with RingClient(ring.clients) as client:
                for repeat in range(repeats + 1):
                    ours = await run_round(client, prompts, new_tokens, dense=True)
                    theirs = await asyncio.to_thread(reference.run, prompts, new_tokens)
                    if repeat == 0:  # the first of each warms up
                        continue
                    result.ring.append(ours.decode_rate)
                    result.transformers.append(theirs.decode_rate)
                    pairs = [a == b for x, y in zip(ours.tokens, theirs.tokens, strict=True) for a, b in zip(x, y, strict=True)]
                    result.same_tokens = sum(pairs) / len(pairs)
            return result

        for batch in batches:
            yield asyncio.run(measure(batch))


def line(c: Comparison) -> str:
    """One comparison in a line."""
    low, high = min(c.ratios), max(c.ratios)
    return (
        f"{c.shape} {c.dtype} {c.nodes} nodes, {c.batch:2d} sequences: ring {median(c.ring):7.1f} tok/s, transformers "
        f"{median(c.transformers):7.1f} tok/s, ratio {median(c.ratios):.2f} ({low:.2f}-{high:.2f}), "
        f"same tokens {c.same_tokens:.1%}"
    )
