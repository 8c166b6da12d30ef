"""What a study's report and its plots read off the records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from ring.bench.study import Cell, Record


def by_cell(records: list[Record]) -> dict[Cell, list[Record]]:
    """Records of the same cell together, in the grid's order."""
    cells: dict[Cell, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.lost, r.slow, r.nodes, r.prompt, r.batch, r.repeat)):
        cells[record.cell].append(record)
    return cells


def usual(cells: dict[Cell, list[Record]]) -> dict[Cell, list[Record]]:
    """Those of the grid, in which nothing happens to a node."""
    return {cell: records for cell, records in cells.items() if cell.slow == 1 and not cell.lost}


def middle(records: Sequence[Record], figure: str) -> float:
    """The median of a figure over a cell's rounds; 0 where there is none."""
    values = [value for record in records if (value := getattr(record, figure)) is not None]
    return median(values) if values else 0.0
