"""View 2: the last laps as a Gantt chart, and one of them in numbers."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult

from tui.screens.base import View
from tui.widgets.gantt import Gantt
from tui.widgets.lap_table import LapTable, runs_line, title
from tui.widgets.panel import Paragraph, entitle
from tui.widgets.state_panel import StatePanel

LEGEND = "█ decode  ▒ prefill  ╌ arrived and waiting  · nothing to compute: the bubble; letters name microbatches"


class Waterfall(View):
    """Where one sees the pipeline fill, prefill chunks chase each other, and a straggler hold everything up."""

    AUTO_FOCUS = "Gantt"
    CSS = """
    Waterfall Gantt, Waterfall LapTable {
        border: round $panel-lighten-1; border-title-color: $text-muted; border-subtitle-color: $text-muted;
    }
    Waterfall Gantt:focus { border: round $primary 60%; }
    Waterfall #legend { height: auto; padding: 0 2; color: $text-muted; }
    Waterfall #none { padding: 1 3; color: $text-muted; }
    Waterfall.-short #legend { display: none; }
    """

    _frames = 0

    def body(self) -> ComposeResult:
        yield StatePanel(classes="brief")
        yield Paragraph(id="none")
        yield Gantt()
        yield Paragraph(LEGEND, id="legend")
        yield LapTable()

    def draw(self, figures: bool) -> None:
        super().draw(figures)
        self._frames += 1
        if not figures and self._frames % 3:  # nobody can follow it faster, and it is the dearest picture
            return
        model, gantt, table = self.dashboard.model, self.query_one(Gantt), self.query_one(LapTable)
        some = bool(model.log.laps)
        none = self.query_one("#none", Paragraph)
        none.display = not some
        gantt.display = table.display = some
        if not some:
            none.show("Nothing has gone round yet. Press / and ask something: its laps appear here as they come round.")
            return
        gantt.draw(model)
        entitle(gantt, "waterfall · paused" if gantt.paused else "waterfall · live")
        lap = gantt.chosen
        if lap is None:
            entitle(table, "lap")
            table.say("← and → or a click pick a lap: what it carried, and where each of its milliseconds went.")
        else:
            entitle(table, title(lap))
            table.draw(lap, [[runs_line(lap)]])

    @on(Gantt.Changed)
    def _changed(self) -> None:
        self.draw(True)
