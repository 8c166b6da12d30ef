"""What this machine can do: how fast it reads memory and multiplies, what a layer costs beside that, and its link.

Each figure is the middle one of several rounds: a ring will not have the machine's best moments either.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median

import msgspec

from ring.plan.trial import LAYERS, Trial

ROWS = (1, 4, 8, 16, 32, 128, 512)
"""Decode steps of so many sequences, and prefill chunks."""
DTYPES = ("float32", "bfloat16", "float16", "int8")
DECODED = 32
"""Rows up to which they are sequences of a decode step; more are a prompt's."""
READ = 256 << 20
ROUND_S, SHARE_S = 0.3, 2.0
RUNS = 8
"""Sequences by which it is told what each adds."""


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
    layer, run = overheads()
    progress("layers")
    linear: dict[str, dict[int, float]] = {}
    for dtype in dtypes:
        linear[dtype] = {}
        for rows, rate in linear_rates(dtype, layer, run):
            linear[dtype][rows] = rate
            progress(f"{dtype}, {rows} rows")
    at_once = 1.0
    if nodes > 1:
        at_once = measure_sharing(nodes, threads)
        progress("sharing")
    return Profile(name, threads, free, bandwidth, linear, layer, run, nodes, at_once)


def usual_time(work: Callable[[], object], seconds: float = ROUND_S) -> float:
    """The middle one of as many rounds as fit into some seconds, three at least, after one to warm up."""
    work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def read_bandwidth(size: int) -> float:
    """Bytes a second, reading that much memory once."""
    import torch

    block = torch.ones(size // 4)
    return block.nbytes / usual_time(block.sum)


def linear_rates(dtype: str, layer: float, run: float) -> Iterator[tuple[int, float]]:
    """For each number of rows, bytes of weights a second that a stage's layers reach, without what they cost beside that."""
    trial = Trial(dtype)
    trial.fill(DECODED)
    for rows in ROWS:
        runs = rows if rows <= DECODED else 1
        step = usual_time(partial(trial.decode if rows <= DECODED else trial.prefill, rows))
        yield rows, trial.bytes / max(step - LAYERS * (layer + runs * run), step / 2)


def overheads() -> tuple[float, float]:
    """Seconds that a layer costs beside its weights, and what each sequence adds to that: steps of layers so small that
    their weights cost nothing, with one sequence and with eight."""
    trial = Trial("float32", small=True)
    trial.fill(RUNS)
    times = [usual_time(partial(trial.decode, runs)) for runs in (1, RUNS)]
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
    trial = Trial("float32")
    trial.fill(4)
    trial.decode(4)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        trial.decode(4)
        done += 1
    return done / (time.perf_counter() - started)
