"""Where prompts are typed: Enter sends, Ctrl-J makes a new line, up-arrow brings back what was asked before."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

HISTORY = 500


class Prompt(TextArea):
    """Grows with its text, up to a few lines; a paste of any length is one prompt."""

    DEFAULT_CSS = """
    Prompt { height: auto; min-height: 3; max-height: 8; padding: 0 1; background: $background;
        border: round $panel-lighten-1; border-title-color: $text-muted; border-subtitle-color: $text-muted;
    }
    Prompt:focus { border: round $accent 70%; }
    Prompt.narrow { max-height: 6; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send"),
        Binding("ctrl+j,shift+enter,alt+enter", "new_line", "New line", key_display="^J"),
        Binding("up", "cursor_up", "History", key_display="↑", show=True),
        Binding("escape", "leave", "Keys"),
    ]
    OWN: ClassVar[dict[str, str]] = {
        "enter": "send",
        "ctrl+j": "new_line",
        "shift+enter": "new_line",
        "alt+enter": "new_line",
        "escape": "leave",
    }

    class Sent(Message):
        """The user has sent a prompt."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Left(Message):
        """The user wants the keys for something else."""

    def __init__(self) -> None:
        super().__init__(show_line_numbers=False, highlight_cursor_line=False)
        self.placeholder = "Type a prompt and press Enter…"
        self.cursor_blink = False  # calm, and it costs nothing while nothing happens
        self.asked: list[str] = []
        self._position = 0
        self._draft = ""

    async def _on_key(self, event: events.Key) -> None:
        """Enter and Escape in their turn: as priority bindings they would overtake what was typed just before."""
        action = self.OWN.get(event.key)
        if action is None:
            await super()._on_key(event)
        else:
            event.stop()
            event.prevent_default()
            getattr(self, f"action_{action}")()

    def fill(self, text: str) -> None:
        """Put a text in, to be changed and sent."""
        self.load_text(text)
        self.move_cursor(self.document.end)
        self.focus()

    def action_send(self) -> None:
        """Send what is typed."""
        if not self.text.strip():
            return
        if not self.asked or self.asked[-1] != self.text:
            self.asked = [*self.asked[1 - HISTORY :], self.text]
        self._position = len(self.asked)
        self._draft = ""
        self.post_message(self.Sent(self.text))
        self.load_text("")

    def action_new_line(self) -> None:
        """Break the line."""
        self.insert("\n")

    def action_leave(self) -> None:
        """Give the keys back to the view."""
        self.post_message(self.Left())

    def action_cursor_up(self, select: bool = False) -> None:
        """On the first line, the prompt before."""
        if self.cursor_at_first_line and not select and self._position > 0:
            if self._position == len(self.asked):
                self._draft = self.text
            self._recall(self._position - 1)
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """On the last line, the prompt after."""
        if self.cursor_at_last_line and not select and self._position < len(self.asked):
            self._recall(self._position + 1)
        else:
            super().action_cursor_down(select)

    def _recall(self, position: int) -> None:
        self._position = position
        self.load_text([*self.asked, self._draft][position])
        self.move_cursor(self.document.end)
