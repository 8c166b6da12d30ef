"""What this machine can do: how fast it reads memory and multiplies, what a layer costs beside that, and its link.

Each figure is the best of several rounds, as whatever else the machine does only makes it slower.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from weights_tools.facts import ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from ring.stage.linear import Product

ROWS = (1, 4, 8, 16, 32, 128, 512)
"""Decode steps of so many sequences, and prefill chunks."""
DTYPES = ("float32", "bfloat16", "float16", "int8")
SHAPE, MATRICES = (4096, 2048), 4
"""Four weights of 8 million numbers, in turns: more than caches hold."""
READ = 256 << 20
ROUND_S, SHARE_S = 0.25, 2.0
LAYERS, RUNS = 8, 8
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
}


class Profile(msgspec.Struct, frozen=True):
    """What was measured, in the units of `machines.toml`'s Machine: bytes of memory that are free, bytes a second, seconds.

    `at_once` is how many of `nodes` nodes on this computer run at full speed together.
    """

    name: str
    threads: int
    memory: int
    bandwidth: float
    linear: dict[str, dict[int, float]]
    layer_overhead: float
    run_overhead: float
    nodes: int = 1
    at_once: float = 1.0
    latency: float | None = None
    network: float | None = None


def steps(nodes: int, dtypes: int) -> int:
    """How often `profile` reports progress."""
    return 2 + dtypes * len(ROWS) + (nodes > 1)


def profile(name: str, threads: int, nodes: int, dtypes: tuple[str, ...], progress: Callable[[str], None]) -> Profile:
    """Measure this machine, as a node with so many threads sees it. `progress` is told what has been measured."""
    import psutil
    import torch

    torch.set_num_threads(threads)
    free = psutil.virtual_memory().available
    bandwidth = read_bandwidth(min(READ, free // 4))
    progress("memory")
    linear: dict[str, dict[int, float]] = {}
    for dtype in dtypes:
        linear[dtype] = {}
        for rows, rate in linear_rates(dtype):
            linear[dtype][rows] = rate
            progress(f"{dtype}, {rows} rows")
    layer, run = overheads()
    progress("layers")
    at_once = 1.0
    if nodes > 1:
        at_once = measure_sharing(nodes, threads)
        progress("sharing")
    return Profile(name, threads, free, bandwidth, linear, layer, run, nodes, at_once)


def best_time(work: Callable[[], object], seconds: float = ROUND_S) -> float:
    """The shortest of as many rounds as fit into some seconds, three at least, after one to warm up."""
    work()
    shortest, rounds, until = float("inf"), 0, time.perf_counter() + seconds
    while rounds < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - started)
        rounds += 1
    return shortest


def read_bandwidth(size: int) -> float:
    """Bytes a second, reading that much memory once."""
    import torch

    block = torch.ones(size // 4)
    return block.nbytes / best_time(block.sum)


def linear_rates(dtype: str) -> Iterator[tuple[int, float]]:
    """For each number of rows, bytes of weights a second that the ring's own linear layers reach."""
    import torch

    layers = packed_layers(dtype)
    size = SHAPE[0] * SHAPE[1] * ITEM_BYTES[dtype] * MATRICES
    for rows in ROWS:
        x = torch.randn(rows, SHAPE[1]).to(torch.bfloat16 if dtype == "int8" else getattr(torch, dtype))
        yield rows, size / best_time(lambda x=x: multiply(layers, x))  # type: ignore[misc]


def packed_layers(dtype: str) -> list[Callable[[Tensor], Tensor]]:
    """Linear layers as a stage has them."""
    import torch
    from torch.nn.functional import linear

    from ring.stage.linear import choose_pack
    from weights_tools.quantize import quantize

    kind = getattr(torch, dtype)
    pack = choose_pack(kind, torch.device("cpu"))
    layers: list[Callable[[Tensor], Tensor]] = []
    for _ in range(MATRICES):
        weight = torch.randn(SHAPE).mul_(0.02)
        if pack is not None:
            product = pack(quantize(weight) if dtype == "int8" else weight.to(kind), True)
            layers.append(partial(call_without_bias, product))
        else:  # without a kernel for it a stage has plain weights too
            layers.append(partial(linear, weight=weight.to(torch.bfloat16 if dtype == "int8" else kind)))
    return layers


def call_without_bias(product: Product, x: Tensor) -> Tensor:
    """A packed layer's product."""
    return product(x, None)


def multiply(layers: list[Callable[[Tensor], Tensor]], x: Tensor) -> None:
    """Every layer once."""
    import torch

    with torch.inference_mode():
        for layer in layers:
            layer(x)


def overheads() -> tuple[float, float]:
    """Seconds that a layer costs beside its weights, and what each sequence adds to that: steps of a model so small that
    its weights cost nothing, with one sequence and with eight."""
    import torch

    from ring.bench.shapes import NO_TOKENS, make_random
    from ring.stage.load import load_stage
    from ring.wire.messages import Run
    from weights_tools.split import split

    with tempfile.TemporaryDirectory(prefix="ring-profile-") as folder:
        make_random(TINY | NO_TOKENS, "float32", Path(folder) / "tiny")
        split(str(Path(folder) / "tiny"), Path(folder) / "shards", stages=1)
        stage = load_stage(Path(folder) / "shards" / "stage-0", verify=False)
    for slot in range(RUNS):
        stage.forward(torch.ones(16, dtype=torch.int64), [Run(slot, 0, 16, 64)])
    times = []
    for count in (1, RUNS):
        runs = [Run(slot, 16, 1, 64) for slot in range(count)]
        times.append(best_time(lambda runs=runs: stage.forward(torch.ones(len(runs), dtype=torch.int64), runs)))  # type: ignore[misc]
    each = max(0.0, (times[1] - times[0]) / (RUNS - 1) / LAYERS)
    return max(0.0, times[0] / LAYERS - each), each


def measure_sharing(nodes: int, threads: int) -> float:
    """How many of so many nodes on this computer run at full speed together: what all do, over what one does alone."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(nodes, mp_context=context) as pool:
        list(pool.map(count_steps, [threads] * nodes, [0.1] * nodes))  # imports done, in every process
        alone = pool.submit(count_steps, threads, SHARE_S).result()
        together = sum(pool.map(count_steps, [threads] * nodes, [SHARE_S] * nodes))
    return max(1.0, min(float(nodes), together / alone))


def count_steps(threads: int, seconds: float) -> float:
    """Decode steps a second, of four sequences in float32."""
    import torch

    torch.set_num_threads(threads)
    layers = packed_layers("float32")
    x = torch.randn(4, SHAPE[1])
    multiply(layers, x)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        multiply(layers, x)
        done += 1
    return done / (time.perf_counter() - started)
