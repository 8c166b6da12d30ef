"""A piece of text that is redrawn only when it has changed."""

from __future__ import annotations

from typing import ClassVar

from textual.content import Content
from textual.widgets import Static

from tui.units import printable

Piece = str | tuple[str, str]
"""A text, or a text and its style, as `Content.assemble` takes them."""


class Panel(Static):
    """A Static whose content is compared before it is drawn, so that a still picture costs nothing."""

    WRAPS: ClassVar[bool] = False
    """Whether a change within a line can change the height."""

    shown: Content | None = None

    def show(self, content: Content) -> None:
        """Draw this, unless it is on screen already."""
        before = self.shown
        misfit = bool(self.styles.is_auto_height) and self.size.height != content.plain.count("\n") + 1
        if before is None or not before.is_same(content):
            self.shown = content
            if not content.plain.isprintable():
                content = Content(printable(content.plain), list(content.spans))
            self.update(content, layout=misfit or self.WRAPS)
        elif misfit and not self.WRAPS:
            self.refresh(layout=True)
