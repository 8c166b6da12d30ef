"""View 3: the way of one token, hop by hop."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from tui.screens.base import STREAM_KEYS, View, quiet
from tui.state.laps import end_ns, letter
from tui.state.streams import Stream
from tui.units import one_line, seconds
from tui.widgets.lap_table import LapTable
from tui.widgets.panel import Line, Paragraph, entitle
from tui.widgets.state_panel import StatePanel
from tui.widgets.token_strip import TokenStrip


class Trace(View):
    """A stream's tokens, and for one of them when each stage received, started, finished and sent it."""

    AUTO_FOCUS = "TokenStrip"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "stream(-1)", "Prompt", key_display="↑↓"),
        Binding("down", "stream(1)", "Prompt after", show=False),
        *quiet(STREAM_KEYS),
    ]
    CSS = """
    Trace TokenStrip, Trace LapTable {
        border: round $panel-lighten-1; border-title-color: $text-muted; border-subtitle-color: $text-muted;
    }
    Trace TokenStrip { height: 1fr; min-height: 5; }
    Trace TokenStrip:focus { border: round $primary 60%; }
    Trace #none { padding: 1 3; color: $text-muted; }
    """

    def body(self) -> ComposeResult:
        yield StatePanel(classes="brief")
        yield Paragraph(id="none")
        yield TokenStrip()
        yield LapTable()

    def draw(self, figures: bool) -> None:
        super().draw(figures)
        stream = self.dashboard.selected_stream
        none, strip, table = self.query_one("#none", Paragraph), self.query_one(TokenStrip), self.query_one(LapTable)
        none.display = stream is None
        strip.display = table.display = stream is not None
        if stream is None:
            none.show("No prompt is selected. Press / and ask something, then come back with 3.")
        elif figures:
            strip.draw(self.dashboard.model, stream)
            entitle(strip, f"prompt {stream.number} · {one_line(stream.prompt)[:60]} · {stream.state}")
            self._draw_token(stream, strip.selected(stream))

    def _draw_token(self, stream: Stream, token: int | None) -> None:
        table = self.query_one(LapTable)
        entitle(table, "token" if token is None else f"token {token + 1} of {stream.tokens:,}")
        if token is None:
            return table.say(f"{stream.state}: its first token has not come yet. {stream.detail}")
        model = self.dashboard.model
        lap = model.lap_of_token(stream, token)
        if lap is None:
            return table.say(
                "This token's lap is no longer known: it has left the log, or the dashboard did not keep up with it."
            )
        others = len(lap.runs) - 1
        company = "alone" if not others else f"with {others} other sequence{'' if others == 1 else 's'}"
        position = (model.prompt_tokens(stream) or 0) + token
        lines: list[Line] = [[f"position {position} · microbatch {lap.microbatch} ({letter(lap)}) · {company}"]]
        before = model.lap_of_token(stream, token - 1) if token else None
        if token == 0:
            ttft = seconds(stream.ttft)
            lines.append([f"time to first token {ttft}; this lap, {lap.duration_ns / 1e6:.2f} ms, ended the prefill"])
        elif before is lap:
            lines.append(["came with the token before it, as a guess that was right"])
        elif before is not None:
            head = (lap.started_ns - end_ns(before)) / 1e6
            whole = head + lap.duration_ns / 1e6
            lines.append([f"inter-token latency {whole:.2f} ms = {head:.2f} in the head + {lap.duration_ns / 1e6:.2f} lap"])
        table.draw(lap, lines)

    def action_stream(self, steps: int) -> None:
        """The prompt before or after."""
        numbers = list(self.dashboard.model.streams)
        if numbers:
            at = numbers.index(self.dashboard.selected) if self.dashboard.selected in numbers else 0
            self.dashboard.selected = numbers[max(0, min(len(numbers) - 1, at + steps))]
            self.draw(True)

    @on(TokenStrip.Changed)
    def _changed(self) -> None:
        self.draw(True)
