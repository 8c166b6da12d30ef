"""What all views share: the headline above, the keys below, and a redraw when the application's clock ticks."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Footer

from tui.widgets.headline import Headline
from tui.widgets.state_panel import StatePanel

if TYPE_CHECKING:
    from tui.app import Dashboard

STREAM_KEYS: list[Binding] = [
    Binding("x", "app.cancel", "Cancel"),
    Binding("y", "app.copy", "Copy"),
    Binding("r", "app.again", "Again"),
    Binding("e", "app.edit", "Edit", show=False),
    Binding("s", "app.save", "Save"),
]
"""What can be done with the selected prompt."""


def quiet(bindings: list[Binding]) -> list[Binding]:
    """The same keys, not shown in the footer."""
    return [replace(binding, show=False) for binding in bindings]


class View(Screen[None]):
    """One of the four views. `draw` is called at most ten times a second, and only while the view is on screen.

    Figures are drawn anew twice a second only, as nobody reads ten numbers a second; `figures` says when.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "back", "Back", show=False)]

    @property
    def dashboard(self) -> Dashboard:
        """The application, by its own type."""
        return cast("Dashboard", self.app)

    def compose(self) -> ComposeResult:
        yield Headline()
        yield from self.body()
        yield Footer(compact=True)

    def body(self) -> ComposeResult:
        """What lies between the headline and the keys."""
        raise NotImplementedError

    def on_screen_resume(self) -> None:
        """Back on screen: draw at once."""
        self.draw_soon()

    def on_resize(self) -> None:
        """Another size: what fits has changed."""
        self.draw_soon()

    def draw_soon(self) -> None:
        """Draw once the layout is done."""
        self.call_after_refresh(self.draw_what_is_there, True)

    def draw_what_is_there(self, figures: bool) -> None:
        """Draw; while the screen is being put together or taken apart, as far as its parts are there."""
        with contextlib.suppress(NoMatches):
            self.draw(figures)

    def action_back(self) -> None:
        """To the overview."""
        self.app.switch_mode("overview")

    def draw(self, figures: bool) -> None:
        """Show the model as it stands; to be called before a view draws its own parts."""
        if figures:
            self.query_one(Headline).draw(self.dashboard.model, self.dashboard.note)
            for panel in self.query(StatePanel):
                panel.draw(self.dashboard.model, self.dashboard.feed.name, self.dashboard.starting)
