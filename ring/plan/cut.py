"""The least fold of a cut, and the cut, by dynamic programming: which machines, and which layers each of them has.

A fold is `np.add` or `np.maximum` over what the stages take. The machines stand in their order or in any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Table = NDArray[np.float64]
"""For each first layer and each end, what one machine would take for that range; infinite where it cannot have it. The same
object for machines of the same kind."""
Cut = list[tuple[int, int, int]]
"""For each stage its machine, its first layer and the one after its last."""
T = TypeVar("T")


def each_kind(tables: list[Table], make: Callable[[Table], T]) -> list[T]:
    """`make` of every table, made once for tables that are the same object."""
    made: dict[int, T] = {}
    for table in tables:
        if id(table) not in made:
            made[id(table)] = make(table)
    return [made[id(table)] for table in tables]


@dataclass(frozen=True, slots=True)
class Band:
    """A table without the ranges that are too long for the machine: `values[k, 0, end]` is for the range that starts at
    `end - width + k`."""

    width: int
    values: NDArray[np.float64]

    @classmethod
    def of(cls, table: Table) -> Band:
        """The band of a table; at least one layer wide."""
        ends = np.arange(len(table))
        width = int((ends - ends[:, None])[np.isfinite(table)].max(initial=1))
        padded = np.concatenate([np.full((width, len(table)), np.inf), table])
        return cls(width, padded[ends + np.arange(width)[:, None], ends][:, None])


class Reached:
    """The least folds up to each layer, in `rows` rows: at first 0 for no layer in the first, and else infinite.

    `values[row, end]` is a view of memory that begins with as many infinite places as the widest band needs, so that all
    folds with one range more are one operation.
    """

    def __init__(self, bands: list[Band], rows: int, layers: int) -> None:
        self.width = max(band.width for band in bands)
        padded = np.full((rows, self.width + layers + 1), np.inf)
        padded[0, self.width] = 0.0
        self.values = padded[:, self.width :]
        row, item = padded.strides
        shapes = {band.width: (band.width, *self.values.shape) for band in bands}
        self._before = {
            width: as_strided(padded[:, self.width - width :], shape, (item, row, item), writeable=False)
            for width, shape in shapes.items()
        }

    def extended(self, fold: np.ufunc, band: Band, low: int, high: int) -> NDArray[np.float64]:
        """Rows `low` to `high - 1` with one range more."""
        least: NDArray[np.float64] = fold(self._before[band.width][:, low:high], band.values).min(axis=0)
        return least


def least_fold(fold: np.ufunc, tables: list[Table]) -> float:
    """The least fold of a cut into any number of stages, in order."""
    bands = each_kind(tables, Band.of)
    reached = Reached(bands, 1, len(tables[0]) - 1)
    for band in bands:
        np.minimum(reached.values, reached.extended(fold, band, 0, 1), out=reached.values)
    return float(reached.values[0, -1])


def cut_in_order(fold: np.ufunc, tables: list[Table], stages: int, must: int | None = None) -> tuple[float, Cut]:
    """The least fold of a cut into so many stages, with machine `must` among them if one is given.

    `reached.values[count, end]` is the least fold of the first `end` layers on `count` of the machines so far.
    """
    machines, layers = len(tables), len(tables[0]) - 1
    bands = each_kind(tables, Band.of)
    reached = Reached(bands, stages + 1, layers)
    history = [reached.values.copy()]
    for machine, band in enumerate(bands):
        # So many stages there must be already, for the machines that are left to suffice, and so many there can be.
        low, high = max(0, stages - machines + machine), min(machine + 1, stages)
        extended = reached.extended(fold, band, low, high)
        if machine == must:
            reached.values.fill(np.inf)
        into = reached.values[low + 1 : high + 1]
        np.minimum(into, extended, out=into)
        history.append(reached.values.copy())
    least = float(reached.values[stages, layers])
    cut: Cut = []
    count, end = stages, layers
    for machine in range(machines - 1, -1, -1):
        before, after, band = history[machine], history[machine + 1], bands[machine]
        if least < np.inf and count and (machine == must or after[count, end] < before[count, end]):
            starts = np.arange(max(0, end - band.width), end)
            folds = fold(before[count - 1, starts], band.values[starts - end + band.width, 0, end])
            first = int(starts[folds.argmin()])
            cut.append((machine, first, end))
            count, end = count - 1, first
    return least, cut[::-1]


def cut_in_any_order(fold: np.ufunc, tables: list[Table], stages: int, must: int | None = None) -> tuple[float, Cut]:
    """As above, over sets of machines, as bits. Of machines of one kind, the first go first."""
    machines = len(tables)
    reached: dict[int, NDArray[np.float64]] = {0: np.where(np.arange(len(tables[0])) == 0, 0.0, np.inf)}
    steps: dict[int, list[tuple[int, NDArray[np.intp]]]] = {}
    picks: dict[int, NDArray[np.intp]] = {}
    for subset in range(1, 1 << machines):
        if subset.bit_count() > stages:
            continue
        options: list[NDArray[np.float64]] = []
        ways: list[tuple[int, NDArray[np.intp]]] = []
        for machine in range(machines):
            before = subset & ~(1 << machine)
            twin = any(tables[m] is tables[machine] and not subset >> m & 1 for m in range(machine))
            if before == subset or (twin and must is None) or before not in reached:
                continue
            folded = fold(reached[before][:, None], tables[machine])
            start = folded.argmin(axis=0)
            options.append(np.take_along_axis(folded, start[None], axis=0)[0])
            ways.append((machine, start))
        if options:
            stacked = np.stack(options)
            picks[subset], steps[subset], reached[subset] = stacked.argmin(axis=0), ways, stacked.min(axis=0)
    full = [s for s in reached if s.bit_count() == stages and (must is None or s >> must & 1)]
    subset = min(full, key=lambda s: reached[s][-1], default=0)
    value = float(reached[subset][-1])
    cut: Cut = []
    end = len(tables[0]) - 1
    while subset and value < np.inf:
        machine, start = steps[subset][picks[subset][end]]
        cut.append((machine, int(start[end]), end))
        subset, end = subset & ~(1 << machine), int(start[end])
    return value, cut[::-1]
