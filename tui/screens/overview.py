"""View 1: the ring, its stages, the prompts and their texts."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from tui.screens.base import STREAM_KEYS, View
from tui.widgets.panel import entitle
from tui.widgets.prompt import Prompt
from tui.widgets.ring_view import RingView
from tui.widgets.rows import Rows
from tui.widgets.stage_table import StageTable
from tui.widgets.state_panel import StatePanel
from tui.widgets.stream_table import StreamTable
from tui.widgets.stream_text import StreamText


class Overview(View):
    """One glance: is it healthy, how fast is it, what holds it back."""

    AUTO_FOCUS = "Prompt"
    BINDINGS: ClassVar[list[BindingType]] = [*STREAM_KEYS, Binding("enter", "app.view('trace')", "Trace", show=False)]
    CSS = """
    Overview RingView, Overview StageTable, Overview #streams > * {
        border: round $panel-lighten-1; border-title-color: $text-muted; border-subtitle-color: $text-muted;
    }
    Overview #streams { height: 1fr; min-height: 3; }
    Overview StreamTable { width: 50%; padding: 0 1; }
    Overview StreamText { width: 1fr; padding: 0 1; }
    Overview #streams > *:focus { border: round $primary; }
    Overview.-short RingView, Overview.-short StageTable { border: none; }
    Overview.-short #streams > *, Overview.-short #streams > *:focus { border: none; border-top: solid $panel-lighten-1; }
    Overview.-narrow StreamTable { width: 40; }
    Overview.-short StatePanel { padding: 0 2; }
    Overview StatePanel.alone { height: 1fr; content-align: center middle; text-align: center; }
    """

    def body(self) -> ComposeResult:
        yield StatePanel()
        yield RingView()
        yield StageTable()
        with Horizontal(id="streams"):
            yield StreamTable("prompts")
            yield StreamText()
        yield Prompt()

    def on_mount(self) -> None:
        """Name the panes."""
        self.query_one(StageTable).border_title = "stages · last minute"

    def draw(self, figures: bool) -> None:
        super().draw(figures)
        model, dashboard = self.dashboard.model, self.dashboard
        ring, table, text = self.query_one(RingView), self.query_one(StreamTable), self.query_one(StreamText)
        before = self._layout()
        ring.display = model.condition in ("idle", "running", "broken")
        stages = self.query_one(StageTable)
        stages.display = model.ready
        panel, streams = self.query_one(StatePanel), self.query_one("#streams")
        alone = not model.ready and not model.streams and model.condition != "broken"
        panel.set_class(alone, "alone")
        streams.display = not alone
        if self._layout() != before:  # what appears has its size only after the next layout
            self.draw_soon()
        if ring.display:
            ring.draw(model, figures)
        if figures:
            stages.draw(model)
            table.show_model(model)
            self.show_options()
        if dashboard.selected is None and table.selected is not None:
            dashboard.selected = table.selected
        text.draw(dashboard.selected_stream, model.ready, figures)

    def _layout(self) -> tuple[bool, ...]:
        """Which parts are there, and how."""
        parts = (self.query_one(kind) for kind in (RingView, StageTable, StatePanel))
        return (*(part.display for part in parts), self.query_one("#streams").display)

    def show_options(self) -> None:
        """How the next prompt will be sampled, on the prompt's border."""
        options, prompt = self.dashboard.options, self.query_one(Prompt)
        words = [f"max {options.max_tokens} tokens", f"temperature {options.temperature:g}"]
        words += [f"top-p {options.top_p:g}"] if options.top_p < 1 else []
        words += [f"top-k {options.top_k}"] if options.top_k else []
        words += [f"seed {options.seed}"] if options.seed is not None else []
        words += [f"{len(options.stop)} stop"] if options.stop else []
        lines = prompt.document.line_count
        entitle(prompt, f"prompt · {lines} lines" if lines > 1 else "prompt", " · ".join(words) + " · ^O options")

    def action_back(self) -> None:
        """From the keys to the prompt."""
        self.query_one(Prompt).focus()

    @on(Prompt.Sent)
    def _sent(self, event: Prompt.Sent) -> None:
        self.dashboard.ask(event.text, self.dashboard.options)

    @on(Prompt.Left)
    def _left(self) -> None:
        self.query_one(StreamTable).focus()

    @on(Rows.Moved)
    def _moved(self) -> None:
        self.dashboard.selected = self.query_one(StreamTable).selected
        self.draw(True)

    @on(Rows.Opened)
    def _opened(self) -> None:
        self.app.switch_mode("trace")
