"""A better cut for a ring that runs, from what its own traces say of each machine.

A stage's time for a decode step, over the bytes that it read, is how fast that machine reads here and now, with all that
else runs on it; the planner takes this rate in place of a profile.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from ring.bench.load import random_prompts, run_round
from ring.client import RingClient
from ring.plan.cost import PROCESS, StageCost
from ring.plan.machines import Machine
from ring.plan.planner import Planner
from ring.wire.clients import Lap, StageStatus, Status
from weights_tools.facts import ModelFacts

ENOUGH = 24
"""Decode laps from which a rate can be told."""
KNOWN_TOKENS = 200
"""Token ids that every vocabulary has, for a load of our own."""


class ObserveError(ValueError):
    """A ring that nothing can be told of; the message is one sentence."""


@dataclass(slots=True)
class Observed:
    """What traces have shown: for each stage and number of rows the seconds it computed, decode and prefill apart; the
    seconds from each stage to the next; and how many sequences there were at a time."""

    decode: list[defaultdict[int, list[float]]]
    prefill: list[defaultdict[int, list[float]]]
    links: list[list[float]]
    laps: int = 0
    streams: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, laps: list[Lap], stages: int) -> Observed:
        """Sort laps."""
        seen = cls(
            [defaultdict(list) for _ in range(stages)], [defaultdict(list) for _ in range(stages)], [[] for _ in range(stages)]
        )
        for lap in laps:
            rows = sum(run.count for run in lap.runs)
            mixed = any(run.prefill for run in lap.runs)
            for hop in lap.hops:
                (seen.prefill if mixed else seen.decode)[hop.stage][rows].append(hop.compute_ns / 1e9)
                seen.links[hop.stage].append((hop.send_ns + hop.wire_ns) / 1e9)
            seen.laps += not mixed
        for index in range(0, len(laps), 8):  # sequences of neighbouring laps are there at the same time
            seen.streams[len({run.sequence for lap in laps[index : index + 8] for run in lap.runs})] += 1
        return seen


async def watch(
    head: str, keys: Path | None, insecure: bool, seconds: float, load: int | None, prompt: int, new_tokens: int
) -> tuple[Status, list[Lap]]:
    """The ring's status, and the laps of some seconds, or of a round of `load` prompts that is asked for here.

    Raises:
        RingError: nobody answers.
        ObserveError: the ring has not formed.
    """
    async with RingClient(head, keys=keys, insecure=insecure) as client:
        status = await client.status()
        if status.state != "ready":
            raise ObserveError(f"the ring at {head} has not formed ({status.detail or status.state}); plan once it has")
        laps: list[Lap] = []

        async def collect() -> None:
            async for item in client.traces():
                if isinstance(item, Lap):
                    laps.append(item)

        watcher = asyncio.create_task(collect())
        try:
            if load is None:
                await asyncio.sleep(seconds)
            else:
                await run_round(client, random_prompts(load, prompt, KNOWN_TOKENS), new_tokens)
                await client.status()  # the laps of the round come before its answer
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        return await client.status(), laps


def facts_of_ring(status: Status) -> ModelFacts:
    """The model's sizes, from the shards that the nodes say they have.

    Raises:
        ObserveError: fewer than three stages, of which none has only layers.
    """
    infos = [stage.info for stage in status.stages]
    middle = infos[1:-1]
    if not middle:
        raise ObserveError("with fewer than three stages a ring does not say what a layer weighs; give the checkpoint too")
    layer = sum(info.shard_bytes for info in middle) // sum(info.end_layer - info.first_layer for info in middle)
    first, last = infos[0], infos[-1]
    return ModelFacts(
        name=status.model,
        model_type="",
        dtype=status.dtype,
        layer_bytes=[layer] * first.layers,
        expert_bytes=[0] * first.layers,
        experts=0,
        experts_used=0,
        kv_bytes=[
            info.kv_token_bytes // (info.end_layer - info.first_layer)
            for info in infos
            for _ in range(info.first_layer, info.end_layer)
        ],
        windows=[None] * first.layers,
        head_bytes=max(0, last.shard_bytes - layer * (last.end_layer - last.first_layer)),
        embedding_bytes=max(0, first.shard_bytes - layer * (first.end_layer - first.first_layer)),
        tied_bytes=0,
        hidden_size=0,  # what messages take is in the links' measured times
        attention_width=0,
        vocabulary=0,
        context=status.context,
    )


def machines_of_ring(status: Status, facts: ModelFacts, seen: Observed) -> list[Machine]:
    """Every stage's machine, as fast as it has been seen to be.

    Raises:
        ObserveError: too little was seen.
    """
    if seen.laps < ENOUGH:
        raise ObserveError(
            f"the ring is all but idle: {seen.laps} decode laps were seen, {ENOUGH} are needed; ask it something meanwhile, "
            "watch longer (--watch), or have some prompts asked now (--load 8)"
        )
    hosts = Counter(stage.info.clock for stage in status.stages)
    names = Counter(stage.info.host for stage in status.stages)
    return [
        machine_of_stage(stage, facts, seen, hosts[stage.info.clock], names[stage.info.host] > 1) for stage in status.stages
    ]


def machine_of_stage(stage: StageStatus, facts: ModelFacts, seen: Observed, sharing: int, numbered: bool) -> Machine:
    """One stage's machine. Its memory is what the node has and its share of what is free."""
    info = stage.info
    cost = StageCost(facts, Machine("", 0), info.first_layer, info.end_layer)
    size = cost.dense_bytes + cost.expert_bytes + cost.head_bytes
    decode = seen.decode[info.stage]
    rates = {rows: size / median(times) for rows, times in decode.items() if len(times) >= 3 or len(decode) == 1}
    rates = rates or {rows: size / median(times) for rows, times in decode.items()}
    for rows, times in seen.prefill[info.stage].items():
        if rows > max(rates, default=0) and len(times) >= 2:
            rates[rows] = (size - cost.head_bytes) / median(times)
    return Machine(
        name=f"{info.host}-{info.stage}" if numbered else info.host,
        memory=max(stage.resident_bytes, cost.weight_bytes + PROCESS) + stage.available_bytes // sharing,
        linear={facts.dtype: rates},
        bandwidth=1e15,  # reading the KV cache is in the measured steps already
        latency=median(seen.links[info.stage]),
        network=1e15,
        address=info.host,
        threads=info.threads,
    )


class Proposal(msgspec.Struct, frozen=True):
    """The ring's cut as it is, and what the best one would gain, as a share of today's tokens a second."""

    now: list[tuple[int, int]]
    lap_now_s: float
    lap_s: float
    gain: float
    says: str


def propose(status: Status, planner: Planner) -> Proposal:
    """Compare the ring's cut with the planner's best."""
    now = [(stage.info.first_layer, stage.info.end_layer) for stage in status.stages]
    lap_now = planner.lap(list(range(len(now))), now)
    choice = planner.choose()
    lap = lap_now if choice is None else min(lap_now, choice.lap)
    gain = lap_now / lap - 1
    shown = ", ".join(f"{first}-{end - 1}" for first, end in now)
    if gain < 0.03:
        says = f"the ring's cut ({shown}) is as good as any: the best would gain {gain:.1%}"
    else:
        says = f"the ring's cut ({shown}) can be bettered: {gain:.0%} more tokens/s are predicted from the one above"
    return Proposal(now, lap_now, lap, gain, says)


def observed_streams(seen: Observed) -> int:
    """How many sequences the ring mostly had at once."""
    return seen.streams.most_common(1)[0][0]
