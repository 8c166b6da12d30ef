"""The best cut into a given number of stages: for the least bottleneck, for the shortest way within it, or in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ring.plan.cut import Cut, Table, cut_in_any_order, cut_in_order, each_kind, least_fold

EPSILON = 1e-9


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


def is_better(work: float, stages: int, than: Choice) -> bool:
    """Whether the busiest stage has less to do, or as much with fewer machines."""
    return work < than.work * (1 - EPSILON) or (stages < len(than.machines) and work <= than.work * (1 + EPSILON))


class Search:
    """The best cut into exactly `stages` stages."""

    def __init__(self, tables: Tables, stages: int, groups: int, any_order: bool, must: int | None) -> None:
        self.tables = tables
        self.stages = stages
        self.groups = groups
        self.any_order = any_order
        self.must = must
        self._found: dict[float, Choice | None] = {}
        # Bounds that are quick to find: those of a cut into any number of stages.
        self.least_work = self.least_lap = 0.0
        if not any_order:
            self.least_work = groups * least_fold(np.maximum, tables.busy)
            self.least_lap = max(self.least_work, least_fold(np.add, tables.total))

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
        values = np.sort(np.concatenate([table[np.isfinite(table)] for table in kinds]))
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

    def _choice(self, cut: Cut) -> Choice:
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
        if limit not in self._found:
            self._found[limit] = self._find_shortest(limit)
        return self._found[limit]

    def _find_shortest(self, limit: float) -> Choice | None:
        total_of = {id(busy): total for busy, total in zip(self.tables.busy, self.tables.total, strict=True)}
        allowed = each_kind(self.tables.busy, lambda busy: np.where(busy <= limit, total_of[id(busy)], np.inf))
        value, cut = self._cut(np.add, allowed)
        return None if value == np.inf else self._choice(cut)

    def _cut(self, fold: np.ufunc, tables: list[Table]) -> tuple[float, Cut]:
        """The least fold over a cut's stages, and the cut."""
        return (cut_in_any_order if self.any_order else cut_in_order)(fold, tables, self.stages, self.must)
