"""The trace of one token."""

from __future__ import annotations

from tests.tui.drive import LARGE, ask, asynchronous, dashboard, until, until_shown
from tests.tui.fake_head import FakeHead
from tests.tui.scenes import StillFeed, running
from tui.app import Dashboard
from tui.screens.trace import Trace
from tui.widgets.token_strip import TokenStrip


@asynchronous
async def test_a_tokens_trace_names_its_lap() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await ask(pilot, head, "x")
        for lap in head.laps(40, sequences=1):
            run = lap.runs[0]
            if run.start + run.count >= 600:
                head.tokens(0, f" t{run.start + run.count - 600}")
        await until(pilot, lambda: app.model.streams[1].tokens == 36)
        await pilot.press("escape", "enter")
        await until_shown(pilot, "token 36 of 36", "t35")
        strip = app.screen.query_one(TokenStrip)
        await pilot.press("left")
        screen = await until_shown(pilot, "token 35 of 36", "inter-token latency", "in the head", "alone")
        lap_of_it = app.model.lap_of_token(app.model.streams[1], 34)
        assert lap_of_it is not None
        assert f"position 634 · microbatch {lap_of_it.microbatch}" in screen
        await pilot.press("home")
        await until_shown(pilot, "token 1 of 36", "time to first token", "ended the prefill")
        await pilot.press("end")
        assert strip.token is None
        await pilot.click(TokenStrip, offset=(3, 1))
        await until_shown(pilot, "token 1 of 36")


@asynchronous
async def test_arrows_in_the_trace_change_the_prompt() -> None:
    app = Dashboard(StillFeed(running()))
    async with app.run_test(size=LARGE) as pilot:
        await until(pilot, lambda: len(app.model.streams) == 5)
        app.select(4)
        await pilot.press("escape", "3")
        await until_shown(pilot, "prompt 4")
        assert isinstance(app.screen, Trace)
        await pilot.press("up")
        await until_shown(pilot, "prompt 3")
        await pilot.press("down", "down")
        await until_shown(pilot, "prompt 5", "has not come", "256 requests")
