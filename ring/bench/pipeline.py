"""How close a ring comes to its ideal when a stage's time is fixed: what is missing is the ring's own cost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import psutil
import zmq

from ring.bench.load import Round, random_prompts, run_round
from ring.bench.nodes import BenchRing
from ring.bench.shapes import checkpoint, shards
from ring.client import RingClient
from ring.wire.clients import Lap

SHAPE = "gpt2-tiny"
VOCABULARY = 512
NODE_OPTIONS = ["--threads", "1", "--no-speculate"]


@dataclass(slots=True)
class Throughput:
    """Tokens a second, against the ideal: every sequence one token in the time that a lap's steps and links take.

    `step_ms` is what was asked for, `slept_ms` the median of what a step took: a sleep always takes longer, which is not
    the ring's doing. `hop_us_p50` is what a hop takes beside computing, waiting in a queue and the link's own delay;
    `bare_hop_us_p50` what one takes here between two sockets that do nothing else, now and again, as often.
    """

    stages: int
    step_ms: float
    slept_ms: float
    delay_ms: float
    sequences: int
    tokens_per_s: float
    efficiency: float
    hop_us_p50: float
    bare_hop_us_p50: float
    idle_cpu: float


def throughput(
    stages: int, step_ms: float, delay_ms: float, new_tokens: int, say: Callable[[str], None], idle_s: float = 3.0
) -> Throughput:
    """Decode with enough sequences to fill every stage and every link, one a microbatch at least."""
    folder = shards(checkpoint(SHAPE, "float32"), stages, "float32", say)
    # A lap takes `stages` steps and as many links; a full ring has that many microbatches on the way.
    filled = int(stages * (1 + delay_ms / step_ms) + 1.999)
    sequences = 2 * filled
    with BenchRing(folder, stages, NODE_OPTIONS, [step_ms] * stages, 0.0, delay_ms) as ring:
        return asyncio.run(_throughput(ring, stages, step_ms, delay_ms, sequences, new_tokens, idle_s))


async def _throughput(
    ring: BenchRing, stages: int, step_ms: float, delay_ms: float, sequences: int, new_tokens: int, idle_s: float
) -> Throughput:
    prompts = random_prompts(sequences, 4, VOCABULARY)
    laps: list[Lap] = []

    async def watch(client: RingClient) -> None:
        async for item in client.traces():
            if isinstance(item, Lap):
                laps.append(item)

    async with RingClient(ring.clients) as client:
        idle = await idle_cpu(ring, idle_s)
        await run_round(client, prompts[:1], 4)  # shows the head that stages are no faster when one works alone
        watcher = asyncio.create_task(watch(client))
        await run_round(client, prompts, new_tokens)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    # The steady middle: without the first laps, which prefill, and the last, in which sequences end.
    steady = laps[len(laps) // 5 : -len(laps) // 5]
    ends = [lap.started_ns + lap.duration_ns for lap in steady]
    tokens = sum(len(lap.runs) for lap in steady[1:])
    rate = tokens / ((ends[-1] - ends[0]) / 1e9)
    hops = [(hop.send_ns + hop.wire_ns) / 1e3 - delay_ms * 1e3 for lap in steady for hop in lap.hops]
    slept_ms = median(hop.compute_ns for lap in steady for hop in lap.hops) / 1e6
    efficiency = rate / (sequences / (stages * (slept_ms + delay_ms) / 1e3))
    bare = await asyncio.to_thread(bare_hop_us, step_ms / 1e3)
    return Throughput(stages, step_ms, slept_ms, delay_ms, sequences, rate, efficiency, median(hops), bare, idle)


def bare_hop_us(pause_s: float, count: int = 50) -> float:
    """The median time of a small message over loopback TCP, from before it is sent until it is received, with a pause
    before each: a core that sleeps in between takes longer to wake than the message to travel."""
    times: list[float] = []

    def receive() -> None:
        for _ in range(count):
            frames = pull.recv_multipart()
            times.append((time.monotonic_ns() - int(frames[0])) / 1e3)

    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        for _ in range(count):
            time.sleep(pause_s)
            push.send_multipart([b"%d" % time.monotonic_ns(), bytes(256)])
        receiver.join()
    return median(times)


async def idle_cpu(ring: BenchRing, seconds: float) -> float:
    """The busiest node's share of a core when nothing is asked."""
    if not seconds:
        return 0.0
    processes = [psutil.Process(process.pid) for process in ring.processes]
    await asyncio.sleep(1.0)
    before = [sum(process.cpu_times()[:2]) for process in processes]
    started = time.monotonic()
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - started
    return max((sum(p.cpu_times()[:2]) - b) / elapsed for p, b in zip(processes, before, strict=True))


@dataclass(slots=True)
class LongPrompts:
    """A prompt of `prompt` tokens over emulated stages, alone and under a running stream.

    `ideal_s` is a single node's time for it divided by the stages. `itl_ms` is the stream's median inter-token latency
    without long prompts, `p99_ms` its 99th percentile under an unbroken row of them.
    """

    stages: int
    prompt: int
    ttft_s: float
    ideal_s: float
    efficiency: float
    itl_ms: float
    p99_ms: float


def long_prompts(stages: int, step_ms: float, prompt: int, say: Callable[[str], None]) -> LongPrompts:
    """A whole model that takes `stages * step_ms` a step, cut into `stages`."""
    token_ms = step_ms / 8  # a microbatch of 8 tokens takes as long as one of a single token, as on a real CPU (docs/study.md)
    folder = shards(checkpoint(SHAPE, "float32"), stages, "float32", say)
    with BenchRing(folder, stages, NODE_OPTIONS, [step_ms] * stages, token_ms) as ring:
        return asyncio.run(_long_prompts(ring, stages, step_ms, token_ms, prompt))


async def _long_prompts(ring: BenchRing, stages: int, step_ms: float, token_ms: float, prompt: int) -> LongPrompts:
    longs = random_prompts(64, prompt, VOCABULARY, seed=1)
    async with RingClient(ring.clients) as client:
        await run_round(client, random_prompts(1, 8, VOCABULARY), 10)
        ttft = median([(await run_round(client, [longs[k]], 1)).ttft_s for k in range(3)])
        quiet = await run_round(client, random_prompts(1, 8, VOCABULARY), 60)
        stream = asyncio.create_task(run_round(client, random_prompts(1, 8, VOCABULARY), 150))
        k = 0
        while not stream.done():  # one long prompt after another, each for a single token
            await run_round(client, [longs[k % len(longs)]], 1)
            k += 1
        busy: Round = await stream
    itl = median(quiet.gaps_s)
    p99 = quantiles(busy.gaps_s[5:], n=100)[98]
    ideal = prompt * token_ms / 1e3
    return LongPrompts(stages, prompt, ttft, ideal, ideal / ttft, itl * 1e3, p99 * 1e3)


@dataclass(slots=True)
class Speculation:
    """One stream's decode rates with guessing ahead over those without, on text that repeats and on text that never does."""

    stages: int
    repetitive: float
    unpredictable: float


def speculation(stages: int, step_ms: float, say: Callable[[str], None], new_tokens: int = 150) -> Speculation:
    """Tokens a second of a lonely stream, on emulated stages."""
    folder = shards(checkpoint(SHAPE, "float32"), stages, "float32", say)

    async def rate(ring: BenchRing) -> float:
        async with RingClient(ring.clients) as client:
            rates = [(await run_round(client, random_prompts(1, 64, VOCABULARY), new_tokens)).decode_rate for _ in range(2)]
        return median(rates)

    rates: dict[tuple[int | None, str], float] = {}
    for period in (23, None):
        for option in ("--speculate", "--no-speculate"):
            with BenchRing(folder, stages, ["--threads", "1", option], [step_ms] * stages, period=period) as ring:
                rates[period, option] = asyncio.run(rate(ring))
    gains = [rates[period, "--speculate"] / rates[period, "--no-speculate"] for period in (23, None)]
    return Speculation(stages, *gains)
