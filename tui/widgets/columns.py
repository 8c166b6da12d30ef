"""Text in columns of fixed width, so that numbers stand still while they change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from tui.widgets.panel import Line, Piece

GAP = "  "


class Column(NamedTuple):
    """A heading and a width; numbers stand to the right."""

    heading: str
    width: int
    right: bool = True


def fit(text: str, width: int, right: bool = False) -> str:
    """The text in exactly so many cells, cut with an ellipsis if it has more."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, max(0, width - 1)) + "…"[:width]
    return " " * (width - length) + text if right else text + " " * (width - length)


def row(columns: Sequence[Column], cells: Iterable[Piece]) -> Line:
    """One line of cells."""
    pieces: Line = []
    for column, cell in zip(columns, cells, strict=True):
        text, style = cell if isinstance(cell, tuple) else (cell, "")
        pieces += [GAP] if pieces else []
        pieces.append((fit(text, column.width, column.right), style))
    return pieces


def heading(columns: Sequence[Column]) -> Line:
    """The line above."""
    return [("  ".join(fit(c.heading, c.width, c.right) for c in columns), "$muted")]
