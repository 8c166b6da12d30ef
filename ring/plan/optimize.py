"""The best cut of layers over machines, exactly: which machines take part, in which order, and which layers each has.

A cut is judged by its lap: the time in which every stream gets a token. The streams are divided over as many microbatches
as there are stages, and the lap is the larger of a microbatch's way round and of what the busiest stage needs for all of
them. The best of all cuts is found by dynamic programming over contiguous ranges: once for the least bottleneck, once for
the shortest way round within it, and where the two pull apart, by bisection over all possible bottlenecks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Table = NDArray[np.float64]
"""For each first layer and each end, what one machine would take for that range; infinite where it cannot have it."""
EPSILON = 1e-9
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tables:
    """What machines would take: `busy` is how long a microbatch occupies a stage or its link, with the work that waits
    for it; `total` how long it takes from its arrival at the stage to that at the next. One table for each machine; the
    same object for the same kind of machine."""

    busy: list[Table]
    total: list[Table]


@dataclass(frozen=True, slots=True)
class Choice:
    """A cut: for each stage its machine, and its first layer and the one after its last.

    `bottleneck` is the most that a microbatch occupies a stage or link, `way` the time of a microbatch's way round, both
    in seconds; `groups` how many microbatches are under way, and `lap` the larger of `way` and `groups * bottleneck`.
    """

    machines: list[int]
    ranges: list[tuple[int, int]]
    bottleneck: float
    way: float
    groups: int

    @property
    def work(self) -> float:
        """Seconds in which the busiest stage or link has done its part for every stream."""
        return self.groups * self.bottleneck

    @property
    def lap(self) -> float:
        """Seconds in which every stream gets a token."""
        return max(self.way, self.work)


def best(
    tables: Callable[[int], Tables],
    machines: int,
    layers: int,
    streams: int,
    any_order: bool = False,
    must: int | None = None,
    tolerance: float = 0.0,
) -> Choice | None:
    """The best cut: no other has a shorter lap by more than `tolerance`, a share of it; and of all those, the busiest stage
    has the least to do, as that leaves most room for prompts and further streams; and of those, the fewest machines. The
    other stages' times are as even as that allows.

    Args:
        tables: told how many stages are used, what machines take then (microbatches of fewer sequences are faster, and a
            ring of one has no links).
        machines: how many there are.
        layers: how many to place.
        streams: sequences at once; one asks for the shortest way round alone.
        any_order: try every order of the machines, not just the given one; for few machines.
        must: a machine that has to take part.

    Returns:
        None if nothing fits.
    """
    searches = []
    for stages in range(1, min(machines, layers) + 1):
        groups = groups_of(streams, rows_of(streams, stages))
        searches.append(Search(tables(stages), layers, stages, groups, any_order, must))
    lap = np.inf
    for search in sorted(searches, key=lambda search: search.least_lap):
        if search.least_lap < lap:
            lap = min(lap, search.shortest_lap(lap))
    if lap == np.inf:
        return None
    limit = lap * (1 + max(tolerance, EPSILON))
    choice: Choice | None = None
    for search in sorted(searches, key=lambda search: (search.least_work, search.stages)):
        if search.least_lap > limit or (choice is not None and not is_better(search.least_work, search.stages, choice)):
            continue
        other = search.most_even(limit, choice)
        if other is not None and (choice is None or is_better(other.work, search.stages, choice)):
            choice, found = other, search
    return choice and found.smoothed(choice, limit)


def rows_of(streams: int, stages: int) -> int:
    """Sequences in a microbatch when so many streams fill so many stages, as the scheduler divides them."""
    return -(-streams // min(stages, streams))


def groups_of(streams: int, rows: int) -> int:
    """Microbatches of so many sequences."""
    return -(-streams // rows)


def is_better(work: float, stages: int, than: Choice) -> bool:
    """Whether the busiest stage has less to do, or as much with fewer machines."""
    return work < than.work * (1 - EPSILON) or (stages < len(than.machines) and work <= than.work * (1 + EPSILON))


def each_kind(tables: list[Table], make: Callable[[Table], T]) -> list[T]:
    """`make` of every table, made once for tables that are the same object."""
    made: dict[int, T] = {}
    for table in tables:
        if id(table) not in made:
            made[id(table)] = make(table)
    return [made[id(table)] for table in tables]


@dataclass(frozen=True, slots=True)
class Band:
    """A table without the ranges that are too long for the machine: `values[end, k]` is for the range that starts at
    `end - width + k`."""

    width: int
    values: NDArray[np.float64]

    @classmethod
    def of(cls, table: Table) -> Band:
        """The band of a table; at least one layer wide."""
        ends = np.arange(len(table))
        width = int((ends - ends[:, None])[np.isfinite(table)].max(initial=1))
        padded = np.concatenate([np.full((width, len(table)), np.inf), table])
        return cls(width, padded[ends[:, None] + np.arange(width), ends[:, None]])

    def extend(self, fold: np.ufunc, reached: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """From the least folds up to each layer, rows of them, to those with one range more: values, and its start."""
        rows, ends = reached.shape
        padded = np.full((rows, self.width + ends), np.inf)
        padded[:, self.width :] = reached
        row, item = padded.strides
        before = as_strided(padded, (rows, ends, self.width), (row, item, item), writeable=False)
        folded = fold(before, self.values)
        return folded.min(axis=2), folded.argmin(axis=2) + np.arange(ends) - self.width


class Search:
    """The best cut into exactly `stages` stages."""

    def __init__(self, tables: Tables, layers: int, stages: int, groups: int, any_order: bool, must: int | None) -> None:
        self.tables = tables
        self.layers = layers
        self.stages = stages
        self.groups = groups
        self.any_order = any_order
        self.must = must
        self.least_work = groups * self._fold_all(np.maximum, tables.busy)
        self.least_lap = max(self.least_work, self._fold_all(np.add, tables.total))

    def _fold_all(self, fold: np.ufunc, tables: list[Table]) -> float:
        """The least fold of a cut into any number of stages: a bound that is quick to find."""
        if self.any_order:
            return 0.0
        reached = np.full(self.layers + 1, np.inf)
        reached[0] = 0.0
        for band in each_kind(tables, Band.of):
            reached = np.minimum(reached, band.extend(fold, reached[None])[0][0])
        return float(reached[-1])

    @cached_property
    def _narrow(self) -> Choice | None:
        """The cut with the least bottleneck, and of those the one with the shortest way."""
        value, _ = self._cut(np.maximum, self.tables.busy)
        return self._shortest(value)

    @cached_property
    def _wide(self) -> Choice | None:
        """The cut with the shortest way."""
        return self._shortest(np.inf)

    @cached_property
    def _bottlenecks(self) -> NDArray[np.float64]:
        """All that could be the bottleneck, between these two."""
        assert self._narrow is not None and self._wide is not None
        kinds = {id(table): table for table in self.tables.busy}.values()
        values = np.unique(np.concatenate([table[np.isfinite(table)] for table in kinds]))
        return values[(values >= self._narrow.bottleneck) & (values <= self._wide.bottleneck)]

    def shortest_lap(self, than: float) -> float:
        """The lap of the cut with the shortest one, or infinite if it is not shorter `than` that. A larger bottleneck allows
        for a shorter way; the shortest lap lies where the one overtakes the other."""
        if self._narrow is None or self._narrow.work >= than:
            return float(np.inf)
        if self._narrow.lap <= self._narrow.work:
            return self._narrow.lap
        if self._wide is None or self._wide.way >= than:
            return float(np.inf)
        met = self._bisect(lambda choice: choice.work >= choice.way)
        return min(choice.lap for choice in (*met, self._narrow, self._wide))

    def most_even(self, limit: float, than: Choice | None) -> Choice | None:
        """The cut with the least bottleneck of those whose lap is within a limit; None if there is none better `than` this."""
        if self._narrow is None or (than is not None and not is_better(self._narrow.work, self.stages, than)):
            return None
        if self._narrow.lap <= limit:
            return self._narrow
        if self._wide is None or self._wide.way > limit:
            return None
        met = self._bisect(lambda choice: choice.way <= limit)
        within = [choice for choice in (*met, self._wide) if choice.lap <= limit]
        return min(within, key=lambda choice: choice.bottleneck, default=None)

    def smoothed(self, choice: Choice, limit: float) -> Choice:
        """A cut that is as good, and has the least sum of squared times: the most even one."""
        squares = each_kind(self.tables.busy, lambda busy: np.where(busy <= choice.bottleneck, busy, np.inf) ** 2)
        _, cut = self._cut(np.add, squares)
        smooth = self._choice(cut)
        return smooth if smooth.lap <= limit else choice

    def _choice(self, cut: list[tuple[int, int, int]]) -> Choice:
        bottleneck = max(float(self.tables.busy[machine][start, end]) for machine, start, end in cut)
        way = sum(float(self.tables.total[machine][start, end]) for machine, start, end in cut)
        return Choice([m for m, _, _ in cut], [(start, end) for _, start, end in cut], bottleneck, way, self.groups)

    def _bisect(self, enough: Callable[[Choice], bool]) -> list[Choice]:
        """Look for the least bottleneck whose shortest cut is `enough`; returns all cuts that were met."""
        low, high = 0, len(self._bottlenecks)
        met = []
        while low < high:
            middle = (low + high) // 2
            choice = self._shortest(self._bottlenecks[middle])
            if choice is not None:
                met.append(choice)
            if choice is not None and enough(choice):
                high = middle
            else:
                low = middle + 1
        return met

    def _shortest(self, limit: float) -> Choice | None:
        """The cut with the shortest way round, of those with no larger bottleneck than `limit`."""
        total_of = {id(busy): total for busy, total in zip(self.tables.busy, self.tables.total, strict=True)}
        allowed = each_kind(self.tables.busy, lambda busy: np.where(busy <= limit, total_of[id(busy)], np.inf))
        value, cut = self._cut(np.add, allowed)
        return None if value == np.inf else self._choice(cut)

    def _cut(self, fold: np.ufunc, tables: list[Table]) -> tuple[float, list[tuple[int, int, int]]]:
        """The least fold over a cut's stages, and the cut: machine, first layer and end of each stage."""
        return self._in_any_order(fold, tables) if self.any_order else self._in_order(fold, tables)

    def _in_order(self, fold: np.ufunc, tables: list[Table]) -> tuple[float, list[tuple[int, int, int]]]:
        """`reached[count, end]` is the least fold of the first `end` layers on `count` of the machines so far."""
        machines = len(tables)
        reached = np.full((self.stages + 1, self.layers + 1), np.inf)
        reached[0, 0] = 0.0
        steps = []
        for machine, band in enumerate(each_kind(tables, Band.of)):
            # So many stages there must be already, for the machines that are left to suffice, and so many there can be.
            low, high = max(0, self.stages - machines + machine), min(machine + 1, self.stages)
            value, start = band.extend(fold, reached[low:high])
            after = np.full_like(reached, np.inf) if machine == self.must else reached.copy()
            taken = np.zeros(reached.shape, bool)
            taken[low + 1 : high + 1] = value < after[low + 1 : high + 1]
            after[low + 1 : high + 1] = np.minimum(value, after[low + 1 : high + 1])
            steps.append((taken, start, low))
            reached = after
        least = float(reached[self.stages, self.layers])
        cut: list[tuple[int, int, int]] = []
        count, end = self.stages, self.layers
        for machine in range(machines - 1, -1, -1):
            taken, start, low = steps[machine]
            if least < np.inf and taken[count, end]:
                first = int(start[count - 1 - low, end])
                cut.append((machine, first, end))
                count, end = count - 1, first
        return least, cut[::-1]

    def _in_any_order(self, fold: np.ufunc, tables: list[Table]) -> tuple[float, list[tuple[int, int, int]]]:
        """As above, over sets of machines, as bits. Of machines of one kind, the first go first."""
        machines = len(tables)
        reached: dict[int, NDArray[np.float64]] = {0: np.where(np.arange(self.layers + 1) == 0, 0.0, np.inf)}
        steps: dict[int, list[tuple[int, NDArray[np.intp]]]] = {}
        picks: dict[int, NDArray[np.intp]] = {}
        for subset in range(1, 1 << machines):
            if subset.bit_count() > self.stages:
                continue
            options: list[NDArray[np.float64]] = []
            ways: list[tuple[int, NDArray[np.intp]]] = []
            for machine in range(machines):
                before = subset & ~(1 << machine)
                twin = any(tables[m] is tables[machine] and not subset >> m & 1 for m in range(machine))
                if before == subset or (twin and self.must is None) or before not in reached:
                    continue
                folded = fold(reached[before][:, None], tables[machine])
                start = folded.argmin(axis=0)
                options.append(np.take_along_axis(folded, start[None], axis=0)[0])
                ways.append((machine, start))
            if options:
                stacked = np.stack(options)
                picks[subset], steps[subset], reached[subset] = stacked.argmin(axis=0), ways, stacked.min(axis=0)
        full = [s for s in reached if s.bit_count() == self.stages and (self.must is None or s >> self.must & 1)]
        subset = min(full, key=lambda s: reached[s][-1], default=0)
        value = float(reached[subset][-1])
        cut: list[tuple[int, int, int]] = []
        end = self.layers
        while subset and value < np.inf:
            machine, start = steps[subset][picks[subset][end]]
            cut.append((machine, int(start[end]), end))
            subset, end = subset & ~(1 << machine), int(start[end])
        return value, cut[::-1]
