"""Text of which only what has changed is drawn again, so that a still picture costs nothing."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from tui.units import printable

Piece = str | tuple[str, str]
"""A text, or a text and its style such as `bold $text-warning`."""
Line = list[Piece]


class Panel(Widget):
    """Lines that are never wrapped: a longer one ends with an ellipsis. Each is laid out when it changes, and only then."""

    DEFAULT_CSS = "Panel { height: auto; }"
    ALLOW_SELECT = False  # what the mouse can select must know its place, piece by piece, which is dear

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.lines: list[Line] = []
        self._strips: dict[int, Strip] = {}
        self._looks: dict[str, Style] = {}

    def show(self, lines: list[Line]) -> None:
        """Draw these lines where they differ from those on screen; the lists must not be changed later."""
        before, self.lines = self.lines, lines
        changed = [y for y, (old, new) in enumerate(zip(before, lines, strict=False)) if old is not new and old != new]
        changed += range(min(len(before), len(lines)), max(len(before), len(lines)))
        for y in changed:
            self._strips.pop(y, None)
        if len(lines) != len(before) and self.styles.is_auto_height:
            self.refresh(layout=True)
        elif changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One for each line."""
        return len(self.lines)

    def render_line(self, y: int) -> Strip:
        """A line as it is on screen."""
        if y >= len(self.lines):
            return Strip.blank(self.size.width, self.rich_style)
        strip = self._strips.get(y)
        if strip is None:
            strip = self._strips[y] = self.strip(self.lines[y])
        if strip.cell_length > self.size.width:
            strip = Strip.join([strip.crop(0, self.size.width - 1), Strip([Segment("…", self.style(""))])])
        return strip

    def strip(self, line: Line) -> Strip:
        """A line laid out."""
        pieces = [(piece, "") if isinstance(piece, str) else piece for piece in line]
        return Strip([Segment(printable(text), self.style(style)) for text, style in pieces if text])

    def style(self, name: str) -> Style:
        """A style as it is in this place under this theme."""
        found = self._looks.get(name)
        if found is None:
            found = self._looks[name] = (self.visual_style + self.app.stylesheet.parse_style(name)).rich_style
        return found

    def notify_style_update(self) -> None:
        """The theme or the focus has changed."""
        super().notify_style_update()
        self._looks.clear()
        self._strips.clear()


class Paragraph(Static):
    """A text that is wrapped."""

    shown: Content | None = None

    def show(self, text: Content | str) -> None:
        """Draw this, unless it is on screen already."""
        content = Content(text) if isinstance(text, str) else text
        if self.shown is None or not self.shown.is_same(content):
            self.shown = content
            self.update(Content(printable(content.plain), list(content.spans)))


def entitle(widget: Widget, above: str, below: str = "") -> None:
    """Write on a widget's border, unless it is there already, as it would be drawn anew. A prompt's text is no markup."""
    title, subtitle = Content(above), Content(below)
    if (widget.border_title or "") != title.markup:
        widget.border_title = title
    if (widget.border_subtitle or "") != subtitle.markup:
        widget.border_subtitle = subtitle
