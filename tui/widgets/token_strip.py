"""A stream's tokens side by side; the slow ones stand out, and one is selected."""

from __future__ import annotations

from itertools import islice, pairwise
from statistics import median
from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui.state.laps import end_ns
from tui.state.model import Model
from tui.state.streams import Mark, Stream
from tui.units import printable
from tui.widgets.panel import Line, Panel

AROUND = 400
SLOW, SLOWER = 1.5, 3.0


class TokenStrip(Panel, can_focus=True):
    """Follows the newest token until another is selected."""

    DEFAULT_CSS = "TokenStrip { height: 7; padding: 0 1; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Token", key_display="←→"),
        Binding("right", "move(1)", "Token after", show=False),
        Binding("home", "move(-1000000)", "First", key_display="Home"),
        Binding("end", "follow", "Newest", key_display="End"),
    ]

    class Changed(Message):
        """Another token is selected."""

    def __init__(self) -> None:
        super().__init__()
        self.token: int | None = None  # None follows the newest
        self._stream: Stream | None = None
        self._model: Model | None = None
        self._spots: list[tuple[int, int, int, int]] = []  # line, first cell, cell after, token

    def selected(self, stream: Stream) -> int | None:
        """The index of the selected token, if there is any token."""
        if not stream.marks:
            return None
        last = stream.marks[-1].index
        return last if self.token is None else max(stream.marks[0].index, min(self.token, last))

    def draw(self, model: Model, stream: Stream) -> None:
        """Show the tokens around the selected one."""
        self._model = model
        if self._stream is not stream:
            self._stream, self.token = stream, None
        at = self.selected(stream)
        if at is None:
            self.show([[("No token yet.", "$muted")]])
            return
        position = next(index for index, mark in enumerate(stream.marks) if mark.index >= at)
        marks = list(islice(stream.marks, max(0, position - AROUND), position + AROUND))
        position = min(position, AROUND)
        gaps = latencies(model, stream, marks)
        usual = median(gaps[1:]) if gaps[1:] else 0.0
        width, height = max(10, self.size.width), max(2, self.size.height - 1)
        lines: list[Line] = [[]]
        spots, used, target = [], 0, 0
        for index in range(len(marks)):
            text = printable(marks[index].text.replace("\n", "⏎").replace("\t", "⇥")) or "·"
            text = text if cell_len(text) < width else "…"
            if used + cell_len(text) + 1 > width:
                lines.append([])
                used = 0
            gap = gaps[index] / usual if index and usual else 1.0
            style = "underline $text-error" if gap > SLOWER else "underline $text-warning" if gap > SLOW else ""
            if index == position:
                style, target = "reverse bold", len(lines) - 1
            lines[-1] += [(text, style), ("│", "$faint")]
            spots.append((len(lines) - 1, used, used + cell_len(text), marks[index].index))
            used += cell_len(text) + 1
        top = max(0, min(target - height // 2, len(lines) - height))
        self._spots = [(line - top, a, b, token) for line, a, b, token in spots]
        legend = f"underlined: came after more than {SLOW:g} times the usual {usual * 1e3:.1f} ms"
        shown = lines[top : top + height]
        shown += [[]] * (height - len(shown))
        self.show([*shown, [(legend, "$muted")]])

    def action_move(self, tokens: int) -> None:
        """Select another token."""
        if self._stream is not None and (at := self.selected(self._stream)) is not None:
            self.token = max(0, at + tokens)
            if self.token >= self._stream.tokens:
                self.token = None
            self._changed()

    def action_follow(self) -> None:
        """Follow the newest."""
        self.token = None
        self._changed()

    def on_click(self, event: events.Click) -> None:
        """Select the token under the mouse."""
        offset = event.get_content_offset(self)
        for line, start, end, token in self._spots:
            if offset is not None and line == offset.y and start <= offset.x < end:
                self.token = token
                self._changed()

    def _changed(self) -> None:
        if self._stream is not None and self._model is not None:
            self.draw(self._model, self._stream)
        self.post_message(self.Changed())


def latencies(model: Model, stream: Stream, marks: list[Mark]) -> list[float]:
    """Seconds from each token to the next, the first's being 0: on the head's clock where the laps are known."""
    gaps = [0.0]
    for earlier, later in pairwise(marks):
        before, lap = model.lap_of_token(stream, earlier.index), model.lap_of_token(stream, later.index)
        gaps.append((end_ns(lap) - end_ns(before)) / 1e9 if lap and before else later.at - earlier.at)
    return gaps
