"""A growing text, wrapped."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells


class Flow:
    """Lines of a text that only grows: what has been wrapped stays, and an addition costs what it is long.

    `rows` are the lines, each with all of its characters; `starts` says at which character each begins.
    """

    def __init__(self, width: int) -> None:
        self.width = max(2, width)
        self.rows = [""]
        self.starts = [0]

    def add(self, text: str) -> None:
        """Go on with this text."""
        first, *others = text.split("\n")
        self._extend(first)
        for line in others:
            self._break(1)
            self._extend(line)

    def _extend(self, text: str) -> None:
        row = self.rows[-1] + text
        while cell_len(row) > self.width:
            fits = len(chop_cells(row, self.width)[0])
            space = row.rfind(" ", 0, fits + 1)
            cut = space + 1 if row[: max(0, space)].strip() else fits
            self.rows[-1] = row[:cut]
            self._break(0)
            row = row[cut:]
        self.rows[-1] = row

    def _break(self, skipped: int) -> None:
        self.starts.append(self.starts[-1] + len(self.rows[-1]) + skipped)
        self.rows.append("")
