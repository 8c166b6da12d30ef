"""What stands where the ring would be while there is none: what is the matter, since when, and what to do."""

from __future__ import annotations

from textual.content import Content

from tui.state.condition import describe
from tui.state.model import Model
from tui.widgets.panel import Paragraph

ROOMY = 32


class StatePanel(Paragraph):
    """One plain screen for every state but a ready ring; `brief` is its first line only."""

    DEFAULT_CSS = """
    StatePanel { height: auto; padding: 1 3; border: round $warning; display: none; }
    StatePanel.brief { padding: 0 1; border: none; background: $warning-muted; }
    """

    def draw(self, model: Model, head: str, starting: bool) -> None:
        """Say it in a title, a reason and an advice."""
        self.display = not model.ready
        if model.ready:
            return
        words = describe(model.condition, model.link, model.status, head, model.condition_for, model.live_streams(), starting)
        if self.has_class("brief"):
            self.show(Content.assemble((words.title, "bold"), " · ", words.reason))
            return
        title = (words.title, "bold $text-warning")
        gap = "\n" if self.screen.size.height < ROOMY else "\n\n"
        self.show(Content.assemble(title, gap, words.reason, gap, (words.advice, "$muted")))
