"""The form in which sampling is set."""

from __future__ import annotations

from textual.widgets import Input

from tests.tui.drive import ask, asynchronous, dashboard, until, until_shown
from tests.tui.fake_head import FakeHead
from tui.screens.options import OptionsScreen


@asynchronous
async def test_options_are_checked_shown_and_sent() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await pilot.press("ctrl+o")
        await until_shown(pilot, "sampling of the next prompts", "temperature")
        fields = {
            name: app.screen.query_one(f"#{name}", Input) for name in ("max_tokens", "temperature", "top_p", "seed", "stop")
        }
        for name, value in (("max_tokens", "0"), ("temperature", "hot"), ("top_p", "0"), ("seed", "-1")):
            before = fields[name].value
            fields[name].value = value
            await pilot.press("enter")
            await until_shown(pilot, f"'{value}' will not do")
            assert isinstance(app.screen, OptionsScreen)
            fields[name].value = before
        fields["max_tokens"].value, fields["temperature"].value = "33", "0.7"
        fields["seed"].value, fields["stop"].value = "5", r"END|\n\n"
        await pilot.press("enter")
        await until_shown(pilot, "max 33 tokens · temperature 0.7 · seed 5 · 2 stop")
        await ask(pilot, head, "x")
        asked = head.asked[0]
        assert (asked.max_tokens, asked.temperature, asked.seed, asked.stop) == (33, 0.7, 5, ["END", "\n\n"])
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, OptionsScreen))
        assert app.screen.query_one("#stop", Input).value == r"END|\n\n"
        app.screen.query_one("#max_tokens", Input).value = "1"
        await pilot.press("escape")
        assert app.options.max_tokens == 33
