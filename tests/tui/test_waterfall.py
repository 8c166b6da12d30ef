"""The waterfall: laps as a Gantt chart."""

from __future__ import annotations

import pytest

from tests.tui.drive import SMALL, asynchronous, dashboard, text_of, until, until_shown
from tests.tui.fake_head import FakeHead
from tui.widgets.gantt import Gantt


@asynchronous
async def test_the_waterfall_pauses_picks_zooms_and_scrolls() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        laps = head.laps(300)
        await until(pilot, lambda: len(app.model.log.laps) == 300)
        await pilot.press("escape", "2")
        await until_shown(pilot, "waterfall · live", "0 alpha", "2 gamma", "busy", "gap", "pick a lap")
        gantt = app.screen.query_one(Gantt)
        await pilot.press("space")
        await until_shown(pilot, "waterfall · paused")
        still = text_of(app)
        for lap in head.laps(10, start_ns=60 * 10**9):
            assert lap.started_ns > laps[-1].started_ns
        await until(pilot, lambda: len(app.model.log.laps) == 310)
        assert text_of(app).splitlines()[2:20] == still.splitlines()[2:20], "a paused picture stands still"
        await pilot.press("space")
        await until_shown(pilot, "waterfall · live")
        await pilot.press("home")
        screen = await until_shown(pilot, "microbatch 0 (a)", "128 prompt tokens", "#1 prefill 0-127")
        first = laps[0]
        assert gantt.chosen is not None and gantt.chosen.microbatch == 0
        assert f"{first.duration_ns / 1e6:.2f} ms, the lap" in screen
        await pilot.press("right", "right", "left")
        await until_shown(pilot, "microbatch 1 (b)")
        before = text_of(app)
        await pilot.press("plus", "plus")
        await until(pilot, lambda: text_of(app) != before)
        await pilot.press("minus", "pageup", "pagedown", "end")
        await until_shown(pilot, "waterfall · live")


@asynchronous
async def test_the_parts_of_a_picked_lap_add_up_on_screen() -> None:
    async with FakeHead() as head, dashboard(head, SMALL) as (app, pilot):
        head.laps(50)
        await until(pilot, lambda: len(app.model.log.laps) == 50)
        await pilot.press("escape", "2", "left", "left", "left")
        screen = await until_shown(pilot, "the lap")
        line = next(line for line in screen.splitlines() if "the lap" in line)
        parts, whole = line.strip("│ ").removesuffix(" ms, the lap").split(" = ")
        assert sum(float(part) for part in parts.split(" + ")) == pytest.approx(float(whole), abs=1e-9)
        chosen = app.screen.query_one(Gantt).chosen
        assert chosen is not None and float(whole) == pytest.approx(chosen.duration_ns / 1e6, abs=0.0051)


@asynchronous
async def test_a_click_picks_a_lap() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        head.laps(100)
        await until(pilot, lambda: len(app.model.log.laps) == 100)
        await pilot.press("escape", "2")
        await until_shown(pilot, "waterfall · live")
        await pilot.click(Gantt, offset=(60, 2))
        await until_shown(pilot, "waterfall · paused", "runs: #")
