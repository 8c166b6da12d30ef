"""The selected stream's text, as it streams."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.selection import Selection
from textual.strip import Strip

from tui.state.streams import Stream
from tui.units import NOTHING, printable, seconds
from tui.widgets.flow import Flow
from tui.widgets.panel import Line, Panel, entitle

EXAMPLE = "def fibonacci(n):"
READY = "Ready. Type a prompt below and press Enter, for example"
TAB = "    "
WHEEL = 3


class StreamText(Panel, can_focus=True):
    """Prompt, answer and figures; stays at the end while it grows, unless one has scrolled up.

    It scrolls by itself and draws only what is in sight: a scrolling container would lay out the screen at every line.
    """

    DEFAULT_CSS = "StreamText { height: 1fr; }"
    ALLOW_SELECT = True

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll(-1)", "Scroll", key_display="↑↓"),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "scroll(-1000000)", "First", show=False),
        Binding("end", "scroll(1000000)", "Last", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._stream: Stream | None = None
        self._flow = Flow(1)
        self._whole: list[Line] = []
        self._foot: list[Line] = []
        self._taken = 0  # characters of the answer that are in the flow
        self._top: int | None = None  # None is the end
        self._shown_from = 0

    def draw(self, stream: Stream | None, example: bool, figures: bool) -> None:
        """Show this stream's text, or, with `example`, what to try."""
        fresh = stream is not self._stream
        if fresh:
            self._stream, self._top = stream, None if stream is None or stream.running else 0
        if stream is None:
            self._whole, self._foot = ([[(READY, "$muted")], [], [EXAMPLE]] if example else []), []
        else:
            if fresh or self._flow.width != self.size.width:
                self._flow, self._whole, self._taken = Flow(self.size.width), [], 0
                self._flow.add(fit_for_screen(stream.prompt))
            self._grow(stream)
            if figures or fresh or not self._foot:
                foot = Flow(self.size.width)
                foot.add(footing(stream))
                style = "$text-error" if stream.outcome == "failed" else "$muted"
                lines: list[Line] = [[(row.rstrip(), style)] for row in foot.rows]
                self._foot = [[], *lines]
        self.redraw()

    def _grow(self, stream: Stream) -> None:
        """Wrap what has come since."""
        text = stream.text
        self._whole = self._whole[: len(self._flow.rows) - 1]
        self._flow.add(fit_for_screen(text[self._taken :]))
        self._taken = len(text)
        asked, first = len(fit_for_screen(stream.prompt)), len(self._whole)
        for row, start in zip(self._flow.rows[first:], self._flow.starts[first:], strict=True):
            seen = row if cell_len(row) <= self._flow.width else row[:-1]  # without the space at which it was broken
            bold = max(0, asked - start)
            self._whole.append([(seen[:bold], "bold"), seen[bold:]])
        if stream.running:
            self._whole[-1] = [*self._whole[-1], ("▌", "$text-accent")]

    def redraw(self) -> None:
        """Draw what is in sight."""
        height = max(1, self.size.height)
        total = len(self._whole) + len(self._foot)
        last = max(0, total - height)
        top = last if self._top is None else max(0, min(self._top, last))
        if top != self._shown_from:
            self._shown_from = top
            self.refresh()
        lines = self._whole[top : top + height]
        self.show(lines + self._foot[max(0, top - len(self._whole)) :][: height - len(lines)])
        entitle(self, "text" if not last else f"text · lines {top + 1:,}-{min(total, top + height):,} of {total:,}")

    def render_line(self, y: int) -> Strip:
        """A line, with what the mouse has selected of it, and told where it is."""
        strip, y = super().render_line(y), y + self._shown_from
        span = self.text_selection.get_span(y) if self.text_selection is not None else None
        if span is not None:
            start, end = span
            first = cell_len(strip.text[:start])
            last = strip.cell_length if end == -1 else cell_len(strip.text[:end])
            chosen = self.screen.get_component_rich_style("screen--selection")
            inside = Strip(Segment.apply_style(strip.crop(first, last), post_style=chosen))
            strip = Strip.join([strip.crop(0, first), inside, strip.crop(last)])
        return strip.apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str]:
        """What the mouse has selected, for the clipboard."""
        lines = ("".join(piece if isinstance(piece, str) else piece[0] for piece in line) for line in self._whole)
        return selection.extract("\n".join(lines)), "\n"

    def action_scroll(self, lines: int) -> None:
        """Move through the text; at the end it follows."""
        last = max(0, len(self._whole) + len(self._foot) - self.size.height)
        top = max(0, (last if self._top is None else min(self._top, last)) + lines)
        self._top = top if top < last else None
        self.redraw()

    def action_page(self, pages: int) -> None:
        """Move by what is in sight."""
        self.action_scroll(pages * max(1, self.size.height - 1))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel scrolls."""
        self.action_scroll(WHEEL)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel scrolls."""
        self.action_scroll(-WHEEL)


def fit_for_screen(text: str) -> str:
    """Without what upsets a terminal."""
    return printable(text.replace("\t", TAB))


def footing(stream: Stream) -> str:
    """How it stands, in a line."""
    if stream.outcome == "failed":
        return f"failed: {stream.detail}"
    prompt = f" after a prompt of {stream.prompt_tokens:,}" if stream.prompt_tokens else ""
    seed = f" · seed {stream.seed}" if stream.seed is not None and stream.options.temperature > 0 else ""
    rate = f"{stream.rate:.1f} tok/s" if stream.rate else NOTHING
    latency = f"TTFT {seconds(stream.ttft)} · ITL {seconds(stream.itl)}"
    return f"{stream.state} · {stream.tokens:,} tokens{prompt} · {rate} · {latency}{seed}"
