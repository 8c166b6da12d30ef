"""The list of prompts: one line each, the newest last."""

from __future__ import annotations

from tui.state.model import Model
from tui.state.streams import Stream
from tui.units import NOTHING, one_line, seconds, tail_of
from tui.widgets.columns import Column, fit
from tui.widgets.panel import Line, Piece
from tui.widgets.rows import Rows

TAIL = (Column("state", 9, False), Column("tokens", 6))
FIGURES = (Column("tok/s", 6), Column("TTFT", 8), Column("ITL", 8))
STYLES = {"failed": "$text-error", "prefill": "$text-accent", "decode": "$text-success"}


class StreamTable(Rows):
    """The row under the cursor is the selected stream."""

    def show_model(self, model: Model) -> None:
        """Draw all streams, the newest last."""
        full = self.size.width >= 66
        fixed = 3 + 9 + 6 + 2 * 3 + (6 + 8 + 8 + 2 * 3 if full else 0)
        prompt = Column("prompt", max(6, self.size.width - fixed), False)
        columns = (Column("#", 3), prompt, *TAIL, *(FIGURES if full else ()))
        self.draw(
            columns,
            list(model.streams),
            lambda number: cells(model, model.streams[number], full),
            lambda number: tail(model.streams[number], self.size.width - 5),
        )


def cells(model: Model, stream: Stream, full: bool) -> list[Piece]:
    """A stream's line."""
    state: Piece = (stream.state, STYLES.get(stream.state, "$muted"))
    if stream.running and not model.ready:
        state = ("paused" if stream.tokens else "waiting", "$text-warning")
    short: list[Piece] = [str(stream.number), one_line(stream.prompt), state, f"{stream.tokens:,}"]
    rate = NOTHING if not stream.rate else f"{stream.rate:.1f}" if stream.rate < 1000 else f"{stream.rate:.0f}"
    return [*short, rate, seconds(stream.ttft), seconds(stream.itl)] if full else short


def tail(stream: Stream, width: int) -> Line:
    """What it says, as far as it fits on a line: the end, as that is where it grows; or why it failed."""
    return ["     ", (fit(one_line(stream.detail), width) if stream.detail else tail_of(stream.text, width), "$muted")]
