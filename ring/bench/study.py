"""The study: how throughput and latency depend on nodes, prompt length and batch, cell by cell of a grid.

Every measured round is a line of JSON in `results.jsonl`, written as soon as it is known, so that a study that was
interrupted goes on where it stopped. Several nodes on one machine share its cores; each is held to one of its own as
far as there are enough.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import msgspec

from ring.bench.load import Round, random_prompts, run_round
from ring.bench.nodes import BenchRing, environment
from ring.bench.shapes import BenchError, checkpoint, shards
from ring.client import RingClient
from ring.wire.clients import Lap
from weights_tools.checkpoint import load_config

RESULTS = "results.jsonl"
ENVIRONMENT = "environment.json"
SEED = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination. `slow` is how many times slower than the others the last node is made; with `lost` it is killed halfway
    through the round and started again at once."""

    nodes: int
    prompt: int
    batch: int
    slow: float = 1.0
    lost: bool = False


class Record(msgspec.Struct):
    """One measured round of a cell: rates in tokens a second, times in seconds, shares of all time that laps took.

    `rate` is all new tokens over wall time, prefill included; `decode_rate` counts while all sequences decode, and is
    None where they never all did. `compute`, `queue` and `wire` add up to 1; `idle` is the share of the stages' time in
    which they computed nothing, the bubble. `gap_s` is the longest that a sequence waited for its next token.
    """

    nodes: int
    prompt: int
    batch: int
    slow: float
    repeat: int
    rate: float
    decode_rate: float | None
    ttft_s: float
    itl_s: float
    itl_p99_s: float
    wall_s: float
    compute: float
    queue: float
    wire: float
    idle: float
    gap_s: float = 0.0
    lost: bool = False

    @property
    def cell(self) -> Cell:
        """Where it belongs."""
        return Cell(self.nodes, self.prompt, self.batch, self.slow, self.lost)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: a shape in a dtype, the grid, and how often; and the grid's last ring, at its median prompt and batch,
    with a node lost (`recovery`) and, for each factor of `slow`, with a straggler."""

    shape: str
    dtype: str
    nodes: list[int]
    prompts: list[int]
    batches: list[int]
    new_tokens: int
    warm_ups: int
    repeats: int
    slow: list[float]
    recovery: bool = True

    def cells(self) -> list[Cell]:
        """All of them, those of one ring together."""
        grid = [Cell(n, p, b) for n, p, b in itertools.product(self.nodes, self.prompts, self.batches)]
        prompt, batch = self.prompts[len(self.prompts) // 2], self.batches[len(self.batches) // 2]
        lost = [Cell(self.nodes[-1], prompt, batch, lost=True)] if self.recovery and self.nodes[-1] > 1 else []
        straggling = [Cell(self.nodes[-1], prompt, batch, factor) for factor in self.slow if factor > 1]
        return grid + lost + straggling


def read_records(folder: Path) -> list[Record]:
    """What has been measured so far; a last line that was cut off is left out."""
    path = folder / RESULTS
    records = []
    for raw in path.read_bytes().splitlines() if path.exists() else []:
        try:
            records.append(msgspec.json.decode(raw, type=Record))
        except msgspec.DecodeError:
            continue
    return records


def check_folder(folder: Path, plan: Plan) -> None:
    """Start a study's folder, or find that it is this study's.

    Raises:
        BenchError: it holds a study of another model, or on another machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ENVIRONMENT
    now = environment() | {"shape": plan.shape, "dtype": plan.dtype, "new_tokens": plan.new_tokens, "seed": SEED}
    if path.exists() and (before := msgspec.json.decode(path.read_bytes())) != now:
        different = ", ".join(key for key in now if before.get(key) != now[key])
        raise BenchError(f"{folder} holds a study with another {different}; choose another folder for --out")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(now), indent=1) + b"\n")
    results = folder / RESULTS
    if results.exists() and not results.read_bytes().endswith(b"\n"):
        with results.open("ab") as file:  # the end of a line that was cut off
            file.write(b"\n")


def run_study(plan: Plan, folder: Path, say: Callable[[str], None], advance: Callable[[int], None]) -> None:
    """Measure what is missing. `advance` is told how many rounds are done or need not be."""
    check_folder(folder, plan)
    done = Counter(record.cell for record in read_records(folder))
    source = checkpoint(plan.shape, plan.dtype)
    config = load_config(source)
    context: int = config.max_position_embeddings
    missing = []
    for cell in plan.cells():
        if cell.prompt + plan.new_tokens > context:
            say(f"left out: a prompt of {cell.prompt} and {plan.new_tokens} new tokens, in a context of {context}")
            advance(plan.repeats)
        else:
            advance(min(done[cell], plan.repeats))
            if done[cell] < plan.repeats:
                missing.append(cell)
    options = ["--threads", "1", "--kv-memory", "1G", "--no-speculate"]
    for (nodes, slow), cells in itertools.groupby(missing, key=lambda cell: (cell.nodes, cell.slow)):
        layers = shards(source, nodes, plan.dtype, say)
        pin = nodes <= len(os.sched_getaffinity(0))
        with BenchRing(layers, nodes, options, slow=slow, pin=pin) as ring:
            for cell in cells:
                for record in asyncio.run(measure(ring, plan, cell, done[cell], config.vocab_size)):
                    with (folder / RESULTS).open("ab") as file:
                        file.write(msgspec.json.encode(record) + b"\n")
                    advance(1)


async def measure(ring: BenchRing, plan: Plan, cell: Cell, done: int, vocabulary: int) -> list[Record]:
    """Warm up, then the rounds that a cell still lacks."""
    prompts = random_prompts(cell.batch, cell.prompt, vocabulary, SEED)
    records, laps = [], []

    async def watch(client: RingClient) -> None:
        async for item in client.traces():
            if isinstance(item, Lap):
                laps.append(item)

    async with RingClient(ring.clients) as client:
        watcher = asyncio.create_task(watch(client))
        usual_s = 0.0
        for repeat in range(-max(plan.warm_ups, cell.lost), plan.repeats - done):
            laps.clear()
            going = asyncio.create_task(run_round(client, prompts, plan.new_tokens))
            if cell.lost and repeat >= 0:
                await asyncio.sleep(usual_s / 2)
                ring.lose(cell.nodes - 1)
            done_round = await going
            usual_s = usual_s or done_round.wall_s
            await client.status()  # the laps of the round come before its answer
            if repeat >= 0:
                records.append(record(cell, done + repeat, done_round, laps))
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return records


def record(cell: Cell, repeat: int, done: Round, laps: list[Lap]) -> Record:
    """What a round has shown."""
    hops = [hop for lap in laps for hop in lap.hops]
    compute, queue = sum(hop.compute_ns for hop in hops), sum(hop.queue_ns for hop in hops)
    wire = sum(hop.send_ns + hop.wire_ns for hop in hops)
    total = max(1, compute + queue + wire)
    gaps = sorted(done.gaps_s) or [0.0]
    return Record(
        **asdict(cell),
        repeat=repeat,
        rate=done.rate,
        decode_rate=done.decode_rate or None,
        ttft_s=done.ttft_s,
        itl_s=median(gaps),
        itl_p99_s=gaps[int(0.99 * (len(gaps) - 1))],
        wall_s=done.wall_s,
        compute=compute / total,
        queue=queue / total,
        wire=wire / total,
        idle=1 - compute / 1e9 / (cell.nodes * done.wall_s),
        gap_s=gaps[-1],
    )
