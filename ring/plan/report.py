"""Makes the plan from the best cut: what is predicted of it, what holds it back, what was left out, what one more machine
would change."""

from __future__ import annotations

from functools import cache
from typing import Literal

import msgspec
import numpy as np

from ring.plan.cost import StageCost, load_work, transfer
from ring.plan.fit import explain
from ring.plan.plan import Bottleneck, LeftOut, OneMore, Plan, PlannedStage
from ring.plan.planner import ANY_ORDER_MOST, Planner
from ring.plan.predict import Prediction, predict
from ring.plan.search import Choice
from ring.plan.units import show_time
from weights_tools.planfile import FORMAT

EXPLAINED_MOST = 8
"""Machines left out for which it is worked out what they would have cost; more get the reason without the figure."""


def make_plan(planner: Planner) -> Plan:
    """The best plan, predicted and explained.

    Raises:
        DoesNotFit: no cut fits.
    """
    choice = planner.choose()
    if choice is None:
        raise explain(planner.facts, planner.machines, planner.load)
    facts, stages = planner.facts, planner.stages(choice)
    one, many = predict(facts, stages, planner.load)
    return Plan(
        format=FORMAT,
        model=facts.name,
        model_type=facts.model_type,
        dtype=facts.dtype,
        layer_bytes=facts.layer_bytes,
        head_bytes=facts.head_bytes,
        embedding_bytes=facts.embedding_bytes,
        aim=planner.aim,
        load=planner.load,
        stages=[planned(planner, number, stage, choice) for number, stage in enumerate(stages)],
        left_out=left_out(planner, choice),
        lap_s=choice.lap,
        one=one,
        many=many,
        bottleneck=bottleneck(planner, choice, stages),
        one_more=one_more(planner, choice, one, many),
    )


def planned(planner: Planner, number: int, stage: StageCost, choice: Choice) -> PlannedStage:
    rows = planner.rows(len(choice.machines))
    last = stage.end == planner.facts.layers
    alone = len(choice.machines) == 1
    hop = 0.0 if alone else stage.machine.latency + transfer(planner.facts, stage.machine, rows, last)
    return PlannedStage(
        stage=number,
        machine=stage.machine.name,
        first_layer=stage.start,
        end_layer=stage.end,
        weight_bytes=stage.weight_bytes,
        kv_bytes=stage.kv_token_bytes * planner.load.kv_tokens,
        memory_bytes=stage.memory(planner.load),
        memory_limit=stage.machine.memory,
        step_s=stage.seconds(load_work(planner.load, rows)),
        busy_s=planner.busy(stage, rows),
        hop_s=hop,
    )


def left_out(planner: Planner, choice: Choice) -> list[LeftOut]:
    """Every machine that takes no part, with what it would have cost."""
    unused = [number for number in range(len(planner.machines)) if number not in choice.machines]
    with_it = cache(planner.choose)
    found = []
    for number in unused:
        machine = planner.machines[number]
        if not np.isfinite(planner.tables_of(number, 2)[0]).any():
            reason = "it holds not even one layer"
        elif len(unused) > EXPLAINED_MOST:
            reason = "the ring is no faster with it"
        elif (other := with_it(number)) is None:
            reason = "with it nothing fits"
        else:
            reason = slower(planner, choice, other)
        found.append(LeftOut(machine.name, reason))
    return found


def slower(planner: Planner, choice: Choice, other: Choice) -> str:
    if planner.aim == "latency":
        return f"with it a token would take {other.lap * 1e3:.4g} ms instead of {choice.lap * 1e3:.4g} ms"
    rates = [f"{planner.streams / lap:.4g}" for lap in (other.lap, choice.lap)]
    if rates[0] == rates[1]:
        return f"the ring is no faster with it ({rates[0]} tokens/s under this load)"
    return f"with it the ring would make {rates[0]} tokens/s under this load instead of {rates[1]}"


def bottleneck(planner: Planner, choice: Choice, stages: list[StageCost]) -> Bottleneck:
    rows = planner.rows(len(stages))
    hops = [planned(planner, number, stage, choice).hop_s for number, stage in enumerate(stages)]
    if choice.way > choice.groups * choice.bottleneck * 1.02 and len(stages) > 1:
        share = sum(hops) / choice.way
        cure = "a network with less latency" if share > 0.5 else "more streams at once"
        says = f"a token's way round: {1 - share:.0%} computing and {share:.0%} on links; {cure} would help"
        return Bottleneck(-1, "way", says)
    busy = [float(planner.tables_of(m, len(stages))[0][cut]) for m, cut in zip(choice.machines, choice.ranges, strict=True)]
    number = int(np.argmax(busy))
    stage, machine = stages[number], stages[number].machine
    where = f"stage {number} on {machine.name}"
    seconds = planner.busy(stage, rows) * planner.crowds[choice.machines[number]]
    if len(stages) > 1 and transfer(planner.facts, machine, rows, stage.end == planner.facts.layers) > seconds:
        return Bottleneck(number, "link", f"the link of {where}: its bandwidth")
    return Bottleneck(number, *limit(planner, stage, rows, where))


def one_more(planner: Planner, choice: Choice, one: Prediction, many: Prediction) -> OneMore | None:
    """What one more machine like the busiest would change."""
    if planner.any_order and len(planner.machines) == ANY_ORDER_MOST:
        return None
    busy = [float(planner.tables_of(m, 2)[0][cut]) for m, cut in zip(choice.machines, choice.ranges, strict=True)]
    like = planner.machines[choice.machines[int(np.argmax(busy))]]
    # Those that were left out stay so: a machine more makes none of them faster.
    chosen = [planner.machines[number] for number in choice.machines]
    planner = Planner(planner.facts, [*chosen, like], planner.load, planner.aim, planner.any_order)
    other = planner.choose()
    assert other is not None
    if len(other.machines) <= len(choice.machines):
        return OneMore(like.name, len(choice.machines), one, many, f"one more machine like {like.name} would not be used")
    first, all_ = predict(planner.facts, planner.stages(other), planner.load)
    gain = all_.tokens_per_s / many.tokens_per_s - 1
    more = "as many tokens/s" if abs(gain) < 0.005 else f"{abs(gain):.0%} {'more' if gain > 0 else 'less'} tokens/s"
    says = (
        f"one more machine like {like.name}: {more} with {planner.load.streams} streams ({all_.tokens_per_s:.3g}), "
        f"first token of one after {show_time(first.ttft_s)} instead of {show_time(one.ttft_s)}"
    )
    return OneMore(like.name, len(other.machines), first, all_, says)


def limit(planner: Planner, stage: StageCost, rows: int, where: str) -> tuple[Literal["memory", "compute", "overhead"], str]:
    """What a stage's time goes to."""
    bare = msgspec.structs.replace(stage.machine, layer_overhead=0.0, run_overhead=0.0)
    seconds = planner.busy(stage, rows)
    without = planner.busy(StageCost(stage.facts, bare, stage.start, stage.end), rows)
    if without < seconds / 2:
        return "overhead", f"{where}: what each layer costs beside its weights; fewer, larger microbatches help"
    read = stage.dense_bytes * stage.machine.seconds_per_byte(stage.facts.dtype, 1) + stage.head_bytes * (
        stage.machine.seconds_per_byte(stage.facts.dtype, 1)
    )
    if read + stage.expert_bytes / stage.machine.bandwidth < without / 2:
        return "compute", f"{where}: multiplying"
    return "memory", f"{where}: reading weights from memory"
