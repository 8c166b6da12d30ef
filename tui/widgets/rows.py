"""A list with a cursor, of which only what is in sight is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui.widgets.columns import Column, fit, heading, row
from tui.widgets.panel import Line, Panel, Piece, entitle


class Rows(Panel, can_focus=True):
    """Rows by key. The cursor stays on its key while others come and go, or at the end if it was there."""

    DEFAULT_CSS = """
    Rows { height: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "move(-1000000)", "First", show=False),
        Binding("end", "move(1000000)", "Last", show=False),
    ]

    class Moved(Message):
        """Another row was selected."""

    class Opened(Message):
        """A row was clicked when it was selected already."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title
        self.keys: list[int] = []
        self._columns: Sequence[Column] = ()
        self._cells: Callable[[int], Sequence[Piece]] = lambda key: ()
        self._below: Callable[[int], Line] | None = None
        self._cursor = -1  # an index into keys
        self._key: int | None = None
        self._top = 0
        self._thickness = 1

    @property
    def selected(self) -> int | None:
        """The key under the cursor."""
        return self._key

    def select(self, key: int) -> None:
        """Put the cursor on a key, now or once there is such a row."""
        self._key = key
        self.redraw()

    def draw(
        self,
        columns: Sequence[Column],
        keys: list[int],
        cells: Callable[[int], Sequence[Piece]],
        below: Callable[[int], Line] | None = None,
    ) -> None:
        """Show these rows, each with a line below if there is room; `cells` and `below` are asked only for those in sight."""
        at_end = self._cursor == len(self.keys) - 1
        if at_end and keys and (self._key is None or self._key in keys) and len(keys) > len(self.keys):
            self._key = keys[-1]
        self.keys, self._columns, self._cells, self._below = keys, columns, cells, below
        self.redraw()

    def redraw(self) -> None:
        """Draw what is in sight."""
        height = max(1, self.size.height - 1)
        below = self._below if len(self.keys) * 2 <= height else None
        self._thickness = 2 if below else 1
        if self._key in self.keys:
            self._cursor = self.keys.index(self._key)
        else:
            self._cursor = min(max(self._cursor, 0), len(self.keys) - 1)
            self._key = self.keys[self._cursor] if self.keys else self._key
        self._top = max(0, min(self._top, self._cursor, len(self.keys) - height))
        self._top = max(self._top, self._cursor - height + 1)
        lines = [heading(self._columns)]
        for index in range(self._top, min(len(self.keys), self._top + height)):
            line = row(self._columns, self._cells(self.keys[index]))
            if index == self._cursor:
                text = "".join(piece if isinstance(piece, str) else piece[0] for piece in line)
                line = [(fit(text, self.size.width), "bold $background on $primary" if self.has_focus else "on $panel")]
            lines.append(line)
            if below:
                lines.append(below(self.keys[index]))
        place = f" · {self._cursor + 1} of {len(self.keys)}" if len(self.keys) > height else ""
        entitle(self, f"{self._title}{place}")
        self.show(lines)

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        if self.keys:
            self._choose(self.keys[max(0, min(len(self.keys) - 1, self._cursor + rows))])

    def action_page(self, pages: int) -> None:
        """Move it by what is in sight."""
        self.action_move(pages * max(1, self.size.height - 2))

    def on_click(self, event: events.Click) -> None:
        """Select the row under the mouse."""
        offset = event.get_content_offset(self)
        index = -1 if offset is None or offset.y < 1 else self._top + (offset.y - 1) // self._thickness
        if not 0 <= index < len(self.keys):
            return
        key = self.keys[index]
        if key == self._key:
            self.post_message(self.Opened())
        else:
            self._choose(key)

    def _choose(self, key: int) -> None:
        self._key = key
        self.redraw()
        self.post_message(self.Moved())

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves the cursor."""
        self.action_move(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves the cursor."""
        self.action_move(-1)

    def on_focus(self) -> None:
        """The cursor looks different."""
        self.redraw()

    def on_blur(self) -> None:
        """The cursor looks different."""
        self.redraw()

    def on_resize(self) -> None:
        """More or fewer rows are in sight."""
        self.redraw()
