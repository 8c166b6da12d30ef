"""How the next prompts are sampled."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label

from tui.messages import Options

FIELDS = {
    "max_tokens": ("max tokens", "most new tokens, at least 1"),
    "temperature": ("temperature", "0 takes the likeliest token; more is bolder"),
    "top_p": ("top-p", "draw among the likeliest of this share; 1 all"),
    "top_k": ("top-k", "draw among this many likeliest tokens; 0 all"),
    "seed": ("seed", "same seed, same tokens; empty picks one"),
    "stop": ("stop", r"end before any of these, | between; \n works"),
}


class OptionsError(ValueError):
    """What was typed is no value for a field; the message is one sentence."""


def show(options: Options, name: str) -> str:
    """A field's value as it is typed."""
    value = getattr(options, name)
    if name == "stop":
        return "|".join(text.replace("\n", "\\n") for text in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def parse(values: dict[str, str]) -> Options:
    """What was typed, checked against the head's own limits.

    Raises:
        OptionsError: a field's value cannot be used.
    """
    fields: dict[str, Any] = {}
    for name, (label, hint) in FIELDS.items():
        text = values[name]
        if name == "stop":
            fields[name] = [part.replace("\\n", "\n") for part in text.split("|") if part]
            continue
        if not text.strip():
            continue
        try:
            fields[name] = float(text) if name in ("temperature", "top_p") else int(text)
            msgspec.convert({name: fields[name]}, Options)
        except (ValueError, msgspec.ValidationError):
            raise OptionsError(f"{label}: '{text}' will not do; {hint}") from None
    try:
        return msgspec.convert(fields, Options)
    except msgspec.ValidationError as error:
        raise OptionsError(f"stop: {error}") from None


class OptionsScreen(ModalScreen[Options | None]):
    """A small form; Enter keeps, Escape leaves all as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave as it was"),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Previous", show=False),
    ]
    CSS = """
    OptionsScreen { align: center middle; }
    OptionsScreen > Vertical { width: 92; max-width: 100%; height: auto; border: round $primary; padding: 0 2; }
    OptionsScreen Grid { grid-size: 3; grid-columns: 13 14 1fr; grid-rows: 1; grid-gutter: 0 1; height: auto; }
    OptionsScreen #error { color: $text-error; height: auto; padding: 1 0 0 0; }
    OptionsScreen .hint { color: $text-muted; }
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "sampling of the next prompts"
            box.border_subtitle = "Enter keeps · Escape leaves all as it was"
            with Grid():
                for name, (label, hint) in FIELDS.items():
                    yield Label(label)
                    field = Input(show(self._options, name), id=name, compact=True, select_on_focus=True)
                    field.cursor_blink = False
                    yield field
                    yield Label(hint, classes="hint", markup=False)
            yield Label("", id="error", markup=False)
        yield Footer(compact=True)

    def action_keep(self) -> None:
        """Check what was typed and close."""
        try:
            self.dismiss(parse({name: self.query_one(f"#{name}", Input).value for name in FIELDS}))
        except OptionsError as error:
            self.query_one("#error", Label).update(str(error))

    def action_leave(self) -> None:
        """Close without a change."""
        self.dismiss(None)

    @on(Input.Submitted)  # not a priority binding, which would overtake what was typed just before
    def _submitted(self) -> None:
        self.action_keep()
