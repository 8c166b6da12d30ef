"""What people expect of any terminal program: keys, palette, themes, sizes."""

from __future__ import annotations

import asyncio

import pytest

from tests.tui.drive import LARGE, ask, asynchronous, dashboard, until, until_shown
from tests.tui.fake_head import FakeHead
from tests.tui.scenes import StillFeed, running
from tui.app import Dashboard
from tui.screens.overview import Overview
from tui.screens.waterfall import Waterfall
from tui.widgets.prompt import Prompt
from tui.widgets.stream_table import StreamTable


@asynchronous
async def test_keys_lead_to_every_view_and_back() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        assert isinstance(app.focused, Prompt), "the prompt has the focus at the start"
        await pilot.press("1")
        assert app.screen.query_one(Prompt).text == "1", "keys are text while one types"
        await pilot.press("escape")
        assert isinstance(app.focused, StreamTable)
        await pilot.press("2")
        await until_shown(pilot, "Nothing has gone round yet")
        await pilot.press("3")
        await until_shown(pilot, "No prompt is selected")
        await pilot.press("4")
        await until_shown(pilot, "found the head")
        await pilot.press("slash")
        await until(pilot, lambda: isinstance(app.focused, Prompt))
        await pilot.press("escape", "2", "escape")
        assert isinstance(app.screen, Overview)
        await pilot.press("escape")
        assert isinstance(app.focused, Prompt)
        await pilot.press("f1")
        await until_shown(pilot, "Everywhere", "this help")
        await pilot.press("escape")
        await pilot.press("escape", "question_mark")
        await until_shown(pilot, "Everywhere")
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


@asynchronous
async def test_the_palette_has_our_commands() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await pilot.press("ctrl+p")
        await until_shown(pilot, "Search for commands")
        await pilot.press(*"waterfall")
        await until_shown(pilot, "View: waterfall")
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, Waterfall))


@asynchronous
async def test_q_and_ctrl_q_quit_and_the_prompt_may_contain_a_q() -> None:
    async with FakeHead() as head:
        async with dashboard(head) as (app, pilot):
            await pilot.press("q")
            assert app.is_running and app.screen.query_one(Prompt).text == "q"
            await pilot.press("escape", "q")
            await until(pilot, lambda: not app.is_running)
        async with dashboard(head) as (app, pilot):
            await pilot.press("ctrl+q")
            await until(pilot, lambda: not app.is_running)


@asynchronous
async def test_dark_and_light() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        assert app.theme == "ring-dark"
        await pilot.press("escape", "d")
        assert app.theme == "ring-light"
        app.theme = "nord"  # not ours: our greys have a fallback
        await until_shown(pilot, "✓ idle")
        await pilot.press("d", "d")
        assert app.theme == "ring-dark"


@asynchronous
async def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Dashboard(StillFeed(running()))
    async with app.run_test(size=LARGE) as pilot:
        await until_shown(pilot, "▲ slowest", "✓ running")
        for segment in (segment for strip in app.screen._compositor.render_strips() for segment in strip):
            for color in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                if color is not None and color.triplet is not None:
                    assert color.triplet.red == color.triplet.green == color.triplet.blue


@asynchronous
async def test_resizing_while_streaming() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await ask(pilot, head, "abc")
        for width, height in ((80, 24), (200, 60), (60, 15), (30, 8), (140, 40)):
            head.tokens(0, " more")
            head.laps(5)
            await pilot.resize_terminal(width, height)
            await pilot.pause(0.15)
            for key in ("escape", "2", "3", "4", "1"):
                await pilot.press(key)
                await pilot.pause()
        await until_shown(pilot, "abc more more more more more", "2 gamma")
        assert app.is_running


@asynchronous
async def test_drawing_is_coalesced_whatever_the_rate_of_traces() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        drawn = 0
        draw = app.screen.draw  # type: ignore[attr-defined]

        def count(figures: bool) -> None:
            nonlocal drawn
            drawn += 1
            draw(figures)

        app.screen.draw = count  # type: ignore[attr-defined]
        ticks = app._frame
        for _ in range(20):
            head.laps(50)
            await pilot.pause(0.02)
        await until(pilot, lambda: app.model.log.total == 1000)
        assert drawn <= app._frame - ticks + 5, "and a few because the layout changed"


@asynchronous
async def test_a_line_from_the_launcher_becomes_an_event() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await asyncio.to_thread(app.report, "warning", "stage 1 ended (killed by SIGKILL); starting it again")
        await pilot.press("escape", "4")
        await until_shown(pilot, "stage 1 ended (killed by SIGKILL); starting it again")
