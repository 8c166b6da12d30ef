"""The planner: what machines would take for layers under a load, and the best cut for that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec
import numpy as np

from ring.plan.cost import PROCESS, Load, StageCost, chunk_work, load_work, transfer
from ring.plan.cut import Table
from ring.plan.machines import Machine, MachineError
from ring.plan.optimize import best, groups_of, rows_of
from ring.plan.plan import Aim
from ring.plan.search import Choice, Tables
from weights_tools.facts import ModelFacts

ANY_ORDER_MOST = 8
SLOWER = 0.01
"""A share of the lap: machines that slow streams by less are welcome, if they leave the busiest stage less to do."""


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
        self.crowds = [max(1.0, hosts.count(m.host) / m.at_once) if m.host and self.streams > 1 else 1.0 for m in machines]
        bare = [msgspec.structs.replace(m, name="", address="", host="", threads=None) for m in machines]
        self._kinds = list(zip(bare, self.crowds, strict=True))
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
        pairs = [self.tables_of(number, stages) for number in range(len(self.machines))]
        return Tables([busy for busy, _ in pairs], [total for _, total in pairs])

    def tables_of(self, number: int, stages: int) -> tuple[Table, Table]:
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
        total = np.where(fits, steps * self.crowds[number], np.inf)
        busy = np.where(fits, busies * self.crowds[number], np.inf)
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


def ranges(values: Sequence[float]) -> Table:
    """The sum of `values[start:end]` at `[start, end]`."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    table: Table = sums[None, :] - sums[:, None]
    return table
