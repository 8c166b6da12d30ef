"""The same work through a ring, through transformers and through llama.cpp, in turns, in the same minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from ring.bench.llama_cpp import LlamaCpp
from ring.bench.load import Round, random_prompts, run_round
from ring.bench.nodes import BenchRing
from ring.bench.reference import Reference
from ring.bench.shapes import checkpoint, shards
from ring.client import RingClient
from weights_tools.checkpoint import load_config


@dataclass(slots=True)
class Comparison:
    """Decode rates (new tokens a second) of the ring and of the others, one each a repeat, and how many tokens agree with
    transformers'."""

    shape: str
    dtype: str
    nodes: int
    batch: int
    prompt: int
    new_tokens: int
    ring: list[float] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    same_tokens: float | None = None

    @property
    def ratios(self) -> dict[str, list[float]]:
        """The ring over each other, for neighbours in time."""
        return {name: [a / b for a, b in zip(self.ring, rates, strict=True)] for name, rates in self.others.items()}


def compare(
    shape: str,
    dtype: str,
    nodes: int,
    batches: list[int],
    prompt: int,
    new_tokens: int,
    repeats: int,
    threads: int,
    transformers: bool,
    llama: Path | None,
    say: Callable[[str], None],
) -> Iterator[Comparison]:
    """Measure every batch size, and yield each as soon as it is known.

    The others get as many threads as all nodes together have; llama.cpp's RPC a server for each node. Beside int8 weights
    transformers has bfloat16 ones, and llama.cpp its own 8-bit ones. Without `transformers`, which
    can be very slow, it is left out.
    """
    plain = "bfloat16" if dtype == "int8" else dtype
    source = checkpoint(shape, plain)
    vocabulary = load_config(source).vocab_size
    folder = shards(source, nodes, dtype, say)
    node_options = ["--threads", str(threads), "--kv-memory", "1G", "--no-speculate"]
    llama_cpp = LlamaCpp(llama, source, dtype) if llama else None
    with (
        BenchRing(folder, nodes, node_options) as ring,
        Reference(source, plain, threads * nodes) if transformers else nullcontext() as reference,
    ):

        def llama_rates(llama_cpp: LlamaCpp, batch: int) -> dict[str, float]:
            work = (batch, prompt, new_tokens, threads * nodes)
            rates = {"llama.cpp": llama_cpp.rate(*work)}
            if llama_cpp.server is not None:
                rates["llama.cpp RPC"] = llama_cpp.rate(*work, servers=nodes)
            return rates

        async def measure(batch: int) -> Comparison:
            prompts = random_prompts(batch, prompt, vocabulary)
            result = Comparison(shape, dtype, nodes, batch, prompt, new_tokens)
            async with RingClient(ring.clients) as client:
                for repeat in range(repeats + 1):
                    ours = await run_round(client, prompts, new_tokens, dense=True)
                    theirs = await asyncio.to_thread(reference.run, prompts, new_tokens) if reference else None
                    if repeat == 0:  # the first of each warms up
                        continue
                    result.ring.append(ours.decode_rate)
                    if theirs:
                        result.others.setdefault("transformers", []).append(theirs.decode_rate)
                        result.same_tokens = share_of_same(ours, theirs)
                    if llama_cpp:
                        for name, rate in llama_rates(llama_cpp, batch).items():
                            result.others.setdefault(name, []).append(rate)
            return result

        for batch in batches:
            yield asyncio.run(measure(batch))


def share_of_same(ours: Round, theirs: Round) -> float:
    """How many of the tokens, each in its place, are the same."""
    pairs = [a == b for x, y in zip(ours.tokens, theirs.tokens, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(pairs) / len(pairs)


def line(c: Comparison) -> str:
    """One comparison in a line."""
    others = "".join(
        f"; {name} {median(c.others[name]):.1f}, ratio {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        for name, ratios in c.ratios.items()
    )
    same = "" if c.same_tokens is None else f"; same tokens as transformers {c.same_tokens:.1%}"
    return f"{c.shape} {c.dtype} {c.nodes} nodes, {c.batch:2d} sequences: ring {median(c.ring):.1f} tok/s{others}{same}"
