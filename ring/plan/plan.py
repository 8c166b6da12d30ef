"""The plan: which machines take which layers, how fast that will be, and what holds it back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import msgspec
import numpy as np

from ring.plan.cost import PROCESS, Load, StageCost, chunk_work, load_work, transfer
from ring.plan.cut import Table
from ring.plan.fit import explain
from ring.plan.machines import Machine, MachineError
from ring.plan.optimize import best, groups_of, rows_of
from ring.plan.predict import Prediction, predict
from ring.plan.search import Choice, Tables
from ring.plan.units import show_time
from weights_tools.facts import ModelFacts
from weights_tools.planfile import FORMAT

Aim = Literal["throughput", "latency"]
ANY_ORDER_MOST = 8
SLOWER = 0.01
"""A share of the lap: machines that slow streams by less are welcome, if they leave the busiest stage less to do."""
EXPLAINED_MOST = 8
"""Machines left out for which it is worked out what they would have cost; more get the reason without the figure."""


class PlannedStage(msgspec.Struct, frozen=True):
    """A stage on its machine: bytes and seconds.

    `memory_bytes` is all that its node needs, of `memory_limit`. `step_s` is a decode step of the load's microbatch,
    `busy_s` the same with its share of prompts, `hop_s` the message to the next stage.
    """

    stage: int
    machine: str
    first_layer: int
    end_layer: int
    weight_bytes: int
    kv_bytes: int
    memory_bytes: int
    memory_limit: int
    step_s: float
    busy_s: float
    hop_s: float


class LeftOut(msgspec.Struct, frozen=True):
    """A machine that takes no part, and why."""

    machine: str
    reason: str


class Bottleneck(msgspec.Struct, frozen=True):
    """What holds the ring back under the asked load: a stage's `memory` (reading weights), `compute` or `overhead` (what a
    layer costs by itself), its `link`, or the `way` round, which more streams would fill. `stage` is -1 for that."""

    stage: int
    kind: Literal["memory", "compute", "overhead", "link", "way"]
    says: str


class OneMore(msgspec.Struct, frozen=True):
    """The ring with one more machine, like `machine`."""

    machine: str
    stages: int
    one: Prediction
    many: Prediction
    says: str


class Plan(msgspec.Struct, frozen=True):
    """A plan, as `plan.json` holds it. `lap_s` is the time in which each of the load's streams gets a token, their prompts
    counted in; `one` predicts a lonely stream and `many` all of the load's at once."""

    format: int
    model: str
    model_type: str
    dtype: str
    layer_bytes: list[int]
    head_bytes: int
    embedding_bytes: int
    aim: Aim
    load: Load
    stages: list[PlannedStage]
    left_out: list[LeftOut]
    lap_s: float
    one: Prediction
    many: Prediction
    bottleneck: Bottleneck
    one_more: OneMore | None
    commands: list[str] = []


class Planner:
    """Plans one model on some machines for a load.

    Args:
        facts: of the model, in the dtype to serve in.
        machines: in the order of the ring; the first also takes the embedding and the head's clients.
        load: what will be asked.
        aim: the most tokens a second under the load, or the fastest single stream.
        any_order: the machines may stand in any order; for at most eight.

    Raises:
        MachineError: too many machines to try every order.
    """

    def __init__(self, facts: ModelFacts, machines: Sequence[Machine], load: Load, aim: Aim, any_order: bool = False) -> None:
        if any_order and len(machines) > ANY_ORDER_MOST:
            raise MachineError(f"every order can be tried of {ANY_ORDER_MOST} machines at most, not of {len(machines)}")
        self.facts = facts
        self.machines = list(machines)
        self.load = load
        self.aim = aim
        self.any_order = any_order
        self.streams = load.streams if aim == "throughput" else 1
        hosts = [machine.host for machine in machines]
        self._crowds = [max(1.0, hosts.count(m.host) / m.at_once) if m.host and self.streams > 1 else 1.0 for m in machines]
        bare = [msgspec.structs.replace(m, name="", address="", host="", threads=None) for m in machines]
        self._kinds = list(zip(bare, self._crowds, strict=True))
        self._tables = cache(self._table)

    def choose(self, must: int | None = None) -> Choice | None:
        """The best cut, with machine `must` in it if one is given; None if nothing fits."""
        tolerance = SLOWER if self.aim == "throughput" else 0.0
        return best(self.tables, len(self.machines), self.facts.layers, self.streams, self.any_order, must, tolerance)

    def rows(self, stages: int) -> int:
        """Sequences in a microbatch when so many stages share the streams."""
        return rows_of(self.streams, stages)

    def tables(self, stages: int) -> Tables:
        """What each machine would take for every range, in a ring of so many stages."""
        pairs = [self._tables_of(number, stages) for number in range(len(self.machines))]
        return Tables([busy for busy, _ in pairs], [total for _, total in pairs])

    def _tables_of(self, number: int, stages: int) -> tuple[Table, Table]:
        first = self._kinds.index(self._kinds[number])
        return self._tables(first, self.rows(stages), stages == 1)

    def _table(self, number: int, rows: int, alone: bool) -> tuple[Table, Table]:
        facts, load, machine = self.facts, self.load, self.machines[number]
        known: dict[object, tuple[float, float, int]] = {}
        costs = []
        for layer in range(facts.layers):
            key = (
                facts.layer_bytes[layer],
                facts.expert_bytes[layer],
                facts.kv_bytes[layer],
                facts.windows[layer],
                layer == 0,
                layer == facts.layers - 1,
            )
            if key not in known:
                stage = StageCost(facts, machine, layer, layer + 1)
                known[key] = (self.step(stage, rows), self.busy(stage, rows), stage.memory(load) - PROCESS)
            costs.append(known[key])
        steps, busies, sizes = (ranges(values) for values in zip(*costs, strict=True))
        sizes[0, -1] = StageCost(facts, machine, 0, facts.layers).memory(load) - PROCESS  # a tied matrix is stored once
        numbers = np.arange(facts.layers + 1)
        fits = (sizes <= machine.memory - PROCESS) & (numbers > numbers[:, None])
        if alone:
            fits[:, :-1] = fits[1:] = False
        total = np.where(fits, steps * self._crowds[number], np.inf)
        busy = np.where(fits, busies * self._crowds[number], np.inf)
        if alone:
            return busy, total
        wire = np.full(facts.layers + 1, transfer(facts, machine, rows, last=False))
        wire[-1] = transfer(facts, machine, rows, last=True)
        return np.maximum(busy, wire), total + wire + machine.latency

    def step(self, stage: StageCost, rows: int) -> float:
        """A decode step of a microbatch."""
        return stage.seconds(load_work(self.load, rows))

    def busy(self, stage: StageCost, rows: int) -> float:
        """How long a stage is busy for each microbatch: with its decode step, and under a lasting load also with its share
        of the prompts, one for each `new_tokens` of a stream."""
        if self.aim == "latency":
            return self.step(stage, rows)
        share = self.streams / groups_of(self.streams, rows) * self.load.prompt / self.load.new_tokens
        chunk = chunk_work(self.load)
        return self.step(stage, rows) + share / chunk.prefill * stage.seconds(chunk)

    def lap(self, machines: Sequence[int], cut: Sequence[tuple[int, int]]) -> float:
        """The lap of any cut; infinite if it does not fit."""
        tables = self.tables(len(cut))
        places = list(zip(machines, cut, strict=True))
        bottleneck = max(float(tables.busy[m][start, end]) for m, (start, end) in places)
        way = sum(float(tables.total[m][start, end]) for m, (start, end) in places)
        return max(way, groups_of(self.streams, self.rows(len(cut))) * bottleneck)

    def stages(self, choice: Choice) -> list[StageCost]:
        """The stages of a cut."""
        pairs = zip(choice.machines, choice.ranges, strict=True)
        return [StageCost(self.facts, self.machines[m], start, end) for m, (start, end) in pairs]

    def plan(self) -> Plan:
        """The best plan, predicted and explained.

        Raises:
            DoesNotFit: no cut fits.
        """
        choice = self.choose()
        if choice is None:
            raise explain(self.facts, self.machines, self.load)
        facts, stages = self.facts, self.stages(choice)
        one, many = predict(facts, stages, self.load)
        return Plan(
            format=FORMAT,
            model=facts.name,
            model_type=facts.model_type,
            dtype=facts.dtype,
            layer_bytes=facts.layer_bytes,
            head_bytes=facts.head_bytes,
            embedding_bytes=facts.embedding_bytes,
            aim=self.aim,
            load=self.load,
            stages=[self._planned(number, stage, choice) for number, stage in enumerate(stages)],
            left_out=self._left_out(choice),
            lap_s=choice.lap,
            one=one,
            many=many,
            bottleneck=self._bottleneck(choice, stages),
            one_more=self._one_more(choice, one, many),
        )

    def _planned(self, number: int, stage: StageCost, choice: Choice) -> PlannedStage:
        rows = self.rows(len(choice.machines))
        last = stage.end == self.facts.layers
        alone = len(choice.machines) == 1
        hop = 0.0 if alone else stage.machine.latency + transfer(self.facts, stage.machine, rows, last)
        return PlannedStage(
            stage=number,
            machine=stage.machine.name,
            first_layer=stage.start,
            end_layer=stage.end,
            weight_bytes=stage.weight_bytes,
            kv_bytes=stage.kv_token_bytes * self.load.kv_tokens,
            memory_bytes=stage.memory(self.load),
            memory_limit=stage.machine.memory,
            step_s=stage.seconds(load_work(self.load, rows)),
            busy_s=self.busy(stage, rows),
            hop_s=hop,
        )

    def _left_out(self, choice: Choice) -> list[LeftOut]:
        """Every machine that takes no part, with what it would have cost."""
        unused = [number for number in range(len(self.machines)) if number not in choice.machines]
        with_it = cache(self.choose)
        found = []
        for number in unused:
            machine = self.machines[number]
            if not np.isfinite(self._tables_of(number, 2)[0]).any():
                reason = "it holds not even one layer"
            elif len(unused) > EXPLAINED_MOST:
                reason = "the ring is no faster with it"
            elif (other := with_it(number)) is None:
                reason = "with it nothing fits"
            else:
                reason = self._slower(choice, other)
            found.append(LeftOut(machine.name, reason))
        return found

    def _slower(self, choice: Choice, other: Choice) -> str:
        if self.aim == "latency":
            return f"with it a token would take {other.lap * 1e3:.4g} ms instead of {choice.lap * 1e3:.4g} ms"
        rates = [f"{self.streams / lap:.4g}" for lap in (other.lap, choice.lap)]
        if rates[0] == rates[1]:
            return f"the ring is no faster with it ({rates[0]} tokens/s under this load)"
        return f"with it the ring would make {rates[0]} tokens/s under this load instead of {rates[1]}"

    def _bottleneck(self, choice: Choice, stages: list[StageCost]) -> Bottleneck:
        rows = self.rows(len(stages))
        hops = [self._planned(number, stage, choice).hop_s for number, stage in enumerate(stages)]
        if choice.way > choice.groups * choice.bottleneck * 1.02 and len(stages) > 1:
            share = sum(hops) / choice.way
            cure = "a network with less latency" if share > 0.5 else "more streams at once"
            says = f"a token's way round: {1 - share:.0%} computing and {share:.0%} on links; {cure} would help"
            return Bottleneck(-1, "way", says)
        busy = [float(self._tables_of(m, len(stages))[0][cut]) for m, cut in zip(choice.machines, choice.ranges, strict=True)]
        number = int(np.argmax(busy))
        stage, machine = stages[number], stages[number].machine
        where = f"stage {number} on {machine.name}"
        seconds = self.busy(stage, rows) * self._crowds[choice.machines[number]]
        if len(stages) > 1 and transfer(self.facts, machine, rows, stage.end == self.facts.layers) > seconds:
            return Bottleneck(number, "link", f"the link of {where}: its bandwidth")
        return Bottleneck(number, *limit(self, stage, rows, where))

    def _one_more(self, choice: Choice, one: Prediction, many: Prediction) -> OneMore | None:
        """What one more machine like the busiest would change."""
        if self.any_order and len(self.machines) == ANY_ORDER_MOST:
            return None
        busy = [float(self._tables_of(m, 2)[0][cut]) for m, cut in zip(choice.machines, choice.ranges, strict=True)]
        like = self.machines[choice.machines[int(np.argmax(busy))]]
        # Those that were left out stay so: a machine more makes none of them faster.
        chosen = [self.machines[number] for number in choice.machines]
        planner = Planner(self.facts, [*chosen, like], self.load, self.aim, self.any_order)
        other = planner.choose()
        assert other is not None
        if len(other.machines) <= len(choice.machines):
            return OneMore(like.name, len(choice.machines), one, many, f"one more machine like {like.name} would not be used")
        first, all_ = predict(self.facts, planner.stages(other), self.load)
        gain = all_.tokens_per_s / many.tokens_per_s - 1
        more = "as many tokens/s" if abs(gain) < 0.005 else f"{abs(gain):.0%} {'more' if gain > 0 else 'less'} tokens/s"
        says = (
            f"one more machine like {like.name}: {more} with {self.load.streams} streams ({all_.tokens_per_s:.3g}), "
            f"first token of one after {show_time(first.ttft_s)} instead of {show_time(one.ttft_s)}"
        )
        return OneMore(like.name, len(other.machines), first, all_, says)


def ranges(values: Sequence[float]) -> Table:
    """The sum of `values[start:end]` at `[start, end]`."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    table: Table = sums[None, :] - sums[:, None]
    return table


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
