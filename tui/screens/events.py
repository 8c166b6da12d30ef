"""View 4: what happened, when, where and why; the newest last."""

from __future__ import annotations

import time

from textual import on
from textual.app import ComposeResult

from tui.screens.base import View
from tui.units import one_line
from tui.widgets.columns import Column
from tui.widgets.panel import Paragraph, Piece, entitle
from tui.widgets.rows import Rows
from tui.widgets.state_panel import StatePanel

STYLES = {"info": "", "warning": "bold $text-warning", "error": "bold $text-error"}


class Events(View):
    """A log of the ring, its requests and the connection."""

    AUTO_FOCUS = "Rows"
    CSS = """
    Events Rows, Events #whole {
        border: round $panel-lighten-1; border-title-color: $text-muted; border-subtitle-color: $text-muted; padding: 0 1;
    }
    Events Rows:focus { border: round $primary 60%; }
    Events #whole { height: auto; max-height: 8; }
    Events #none { padding: 1 3; color: $text-muted; }
    """

    def body(self) -> ComposeResult:
        yield StatePanel(classes="brief")
        yield Paragraph("Nothing has happened since the dashboard started.", id="none")
        yield Rows("events")
        yield Paragraph(id="whole")

    def draw(self, figures: bool) -> None:
        super().draw(figures)
        model, rows, wrapped = self.dashboard.model, self.query_one(Rows), self.query_one("#whole", Paragraph)
        self.query_one("#none").display = not model.events
        rows.display = wrapped.display = bool(model.events)
        first = model.happened - len(model.events)
        room = max(10, rows.size.width - 8 - 8 - 5 - 6)
        columns = (Column("time", 8), Column("severity", 8, False), Column("stage", 5), Column("what happened", room, False))

        def cells(number: int) -> list[Piece]:
            event = model.events[number - first]
            stage = str(event.stage) if event.stage >= 0 else "–"
            return [clock(event.at), (event.severity, STYLES[event.severity]), stage, one_line(event.message)]

        rows.draw(columns, list(range(first, model.happened)), cells)
        if rows.selected is not None and rows.selected >= first:
            event = model.events[rows.selected - first]
            entitle(wrapped, f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event.at))} · {event.severity}")
            wrapped.show(event.message)

    @on(Rows.Moved)
    def _moved(self) -> None:
        self.draw(True)


def clock(at: float) -> str:
    """The time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))
