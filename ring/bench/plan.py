"""`ring bench plan`: what the planner predicts, what real rings on this machine then do, and by how much it was wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import psutil

from ring.bench.load import Round, random_prompts, run_round
from ring.bench.nodes import BenchRing
from ring.bench.shapes import checkpoint, shards
from ring.bench.simulate import fixed_stages
from ring.client import RingClient
from ring.launch import free_ports
from ring.plan.cost import StageCost
from ring.plan.link import answer, measure
from ring.plan.machines import Machine
from ring.plan.predict import simulated
from ring.plan.profile import Profile, profile
from ring.plan.simulate import Outcome, SimStage, simulate
from weights_tools.facts import read_facts
from weights_tools.shard import read_manifest

SHAPE, VOCABULARY = "gpt2-tiny", 512
OPTIONS = ["--threads", "1", "--no-speculate"]
GOOD = 0.15
"""The error that a prediction may have."""
ROUNDS = 3
Say = Callable[[str], None]


@dataclass(slots=True)
class Checked:
    """One figure of one case, in the unit of its name, predicted and measured (the middle one of some rounds). `others` is
    how many cores other processes took meanwhile: with more than a trifle, what was measured is not the ring alone."""

    case: str
    figure: str
    predicted: float
    measured: float
    others: float

    @property
    def error(self) -> float:
        """How much more was predicted than measured, as a share of what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class Emulated:
    """A ring of stages that take a fixed time, behind links that take `delay_ms`."""

    steps_ms: list[float]
    delay_ms: float
    streams: list[int]
    token_ms: float = 0.0
    prompt: int = 4


EMULATED = [
    Emulated([60.0] * 2, 0.0, [1, 4]),
    Emulated([60.0] * 4, 15.0, [1, 8]),
    Emulated([60.0] * 2, 90.0, [1, 8]),
    Emulated([30.0, 120.0, 60.0], 3.0, [1, 6]),
    Emulated([60.0] * 3, 3.0, [1, 6], token_ms=60 / 32, prompt=256),
    Emulated([60.0] * 8, 3.0, [1, 16]),
]
"""Steps so long that waking up late, on a machine with other work, hardly shows."""


def loopback() -> float:
    """Seconds of a message between two sockets of this machine, one way."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    over = threading.Event()
    answering = threading.Thread(target=answer, args=(address, None, lambda _: None, over.is_set), daemon=True)
    answering.start()
    try:
        return measure(address, None)[0]
    finally:
        over.set()
        answering.join()


def check_emulated(cases: Sequence[Emulated], new_tokens: int, say: Say) -> Iterator[Checked]:
    """Rings whose stages take a known time: whether scheduler, links and waiting are predicted right."""
    hop = loopback()
    for case in cases:
        count = len(case.steps_ms)
        folder = shards(checkpoint(SHAPE, "float32"), count, "float32", say)
        stages = fixed_stages([step / 1e3 for step in case.steps_ms], case.token_ms / 1e3, case.delay_ms / 1e3 + hop)
        with BenchRing(folder, count, OPTIONS, case.steps_ms, case.token_ms, case.delay_ms) as ring:
            for streams in case.streams:
                steps = "+".join(f"{step:g}" for step in case.steps_ms)
                name = f"emulated {steps} ms, links {case.delay_ms:g} ms, prompt {case.prompt}, {streams} streams"
                yield from check(ring, stages, name, streams, case.prompt, new_tokens, VOCABULARY)


def check_real(
    shape: str, dtype: str, nodes: Sequence[int], streams: Sequence[int], prompt: int, new_tokens: int, say: Say
) -> Iterator[Checked]:
    """Rings that compute, all on this machine, after profiling it as it is now."""
    source = checkpoint(shape, dtype)
    facts = read_facts(str(source), dtype)
    hop = loopback()
    for count in nodes:
        folder = shards(source, count, dtype, say)
        say(f"profiling this machine for {count} nodes of one thread")
        machine = machine_of(profile("here", 1, count, (dtype,), lambda _: None), hop)
        manifests = [read_manifest(folder / f"stage-{stage}") for stage in range(count)]
        stages = simulated(facts, [StageCost(facts, machine, m.first_layer, m.end_layer) for m in manifests])
        with BenchRing(folder, count, [*OPTIONS, "--kv-memory", "1G"]) as ring:
            for number in streams:
                name = f"real {shape} {dtype}, {count} nodes, prompt {prompt}, {number} streams"
                yield from check(ring, stages, name, number, prompt, new_tokens, facts.vocabulary)


def machine_of(found: Profile, latency: float) -> Machine:
    """A profile as the planner knows it, with links of this machine to itself."""
    return Machine(
        found.name,
        found.memory,
        bandwidth=found.bandwidth,
        linear=found.linear,
        layer_overhead=found.layer_overhead,
        run_overhead=found.run_overhead,
        latency=latency,
        network=20e9,
        host="here" if found.nodes > 1 else "",
        at_once=found.at_once,
    )


def check(
    ring: BenchRing, stages: Sequence[SimStage], name: str, streams: int, prompt: int, new_tokens: int, vocabulary: int
) -> Iterator[Checked]:
    """Some rounds against the simulated one."""
    expected: Outcome = simulate(stages, streams, prompt, new_tokens)
    before = others_used(ring)
    started = time.monotonic()
    rounds = asyncio.run(some_rounds(ring, streams, prompt, new_tokens, vocabulary))
    others = max(0.0, others_used(ring) - before) / (time.monotonic() - started)
    pairs = [
        ("first token, s", expected.ttft_s, median(one.ttft_s for one in rounds)),
        ("between tokens, s", median(expected.round.gaps_s), median(median(one.gaps_s) for one in rounds)),
        ("tokens/s", expected.round.rate, median(one.rate for one in rounds)),
    ]
    for figure, predicted, measured in pairs:
        yield Checked(name, figure, predicted, measured, others)


def others_used(ring: BenchRing) -> float:
    """Seconds of processor time that everything but the ring and this process has taken."""
    times = psutil.cpu_times()
    ours = [psutil.Process(), *(psutil.Process(process.pid) for process in ring.processes)]
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - sum(sum(p.cpu_times()[:2]) for p in ours)


async def some_rounds(ring: BenchRing, streams: int, prompt: int, new_tokens: int, vocabulary: int) -> list[Round]:
    """Rounds of random prompts, after a short one."""
    async with RingClient(ring.clients) as client:
        await run_round(client, random_prompts(streams, prompt, vocabulary), 4)
        return [await run_round(client, random_prompts(streams, prompt, vocabulary), new_tokens) for _ in range(ROUNDS)]


def line(c: Checked) -> str:
    """One figure in a line."""
    mark = "" if abs(c.error) <= GOOD else f"   outside {GOOD:.0%}"
    beside = f" (others took {c.others:.1f} cores)" if c.others > 0.1 else ""
    return f"{c.case}: {c.figure}: predicted {c.predicted:.4g}, measured {c.measured:.4g}, {c.error:+.1%}{mark}{beside}"
