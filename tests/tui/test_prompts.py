"""Prompts: typed, pasted, streamed, cancelled, and what can be done with them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from textual import events

from tests.tui.drive import LARGE, SMALL, ask, asynchronous, dashboard, until, until_shown
from tests.tui.fake_head import FakeHead
from tests.tui.scenes import StillFeed, running
from tui.app import Dashboard
from tui.messages import Asked, Grew, Options
from tui.screens.trace import Trace
from tui.widgets.prompt import Prompt
from tui.widgets.stream_table import StreamTable


@asynchronous
async def test_prompts_stream_side_by_side_and_finish() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        first, second = await ask(pilot, head, "def"), await ask(pilot, head, "import os")
        assert [request.prompt for request in head.asked] == ["def", "import os"]
        head.tokens(first, " f", "(", ")")
        head.tokens(second, " as", " 東", "京")
        await until_shown(pilot, "decode", "import os as 東京")
        head.finish(second, "length")
        await until_shown(pilot, "max len", "312 ms", "39.4 ms", "a prompt of 600")
        await pilot.press("escape", "up")
        await until_shown(pilot, "def f()")
        head.finish(first)
        await until_shown(pilot, "done")
        assert app.selected == 1


@asynchronous
async def test_prompts_asked_at_once_are_told_apart() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        for number in range(5):
            app.ask(f"at once {number}", Options())
        await until(pilot, lambda: len(head.asked) == 5)
        assert [stream.prompt for stream in app.model.streams.values()] == [f"at once {number}" for number in range(5)]


@asynchronous
async def test_twenty_prompts_stay_in_the_list() -> None:
    async with FakeHead() as head, dashboard(head, SMALL) as (app, pilot):
        for number in range(20):
            await ask(pilot, head, f"p{number}")
        for number in range(20):
            head.tokens(number, f" answer {number}")
        await until(pilot, lambda: all(stream.tokens for stream in app.model.streams.values()))
        await until_shown(pilot, "p19 answer 19", "20 of 20")
        await pilot.press("escape", "home")
        await until_shown(pilot, "p0 answer 0", "1 of 20")


@asynchronous
async def test_history_new_lines_and_drafts() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        prompt = app.screen.query_one(Prompt)
        await ask(pilot, head, "one")
        await ask(pilot, head, "two")
        await pilot.press("d", "up")
        assert prompt.text == "two"
        await pilot.press("up")
        assert prompt.text == "one"
        await pilot.press("up", "down", "down")
        assert prompt.text == "d"
        await pilot.press("ctrl+j", "e", "enter")
        await until(pilot, lambda: len(head.asked) == 3)
        assert head.asked[2].prompt == "d\ne"
        await pilot.press("space", "enter")
        await pilot.pause()
        assert len(head.asked) == 3, "an empty prompt is not sent"


@asynchronous
async def test_a_paste_of_500_lines_is_one_prompt() -> None:
    page = "\n".join(f"line {number}" for number in range(500))
    async with FakeHead() as head, dashboard(head, SMALL) as (app, pilot):
        prompt = app.screen.query_one(Prompt)
        app.post_message(events.Paste(page))
        await until(pilot, lambda: prompt.text == page)
        await until_shown(pilot, "500 lines")
        assert prompt.size.height <= 8
        await pilot.press("enter")
        await until(pilot, lambda: bool(head.asked))
        assert head.asked[0].prompt == page


@asynchronous
async def test_cancel_copy_again_edit_and_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await ask(pilot, head, "abc")
        head.tokens(0, " d", "e")
        await until(pilot, lambda: app.model.streams[1].tokens == 2)
        await pilot.press("escape", "y")
        assert app.clipboard == " de"
        await until_shown(pilot, "Copied the 3 characters")
        await pilot.press("x")
        await until(pilot, lambda: head.cancelled == [head.asked[0].request])
        await until_shown(pilot, "cancelled")
        await pilot.press("r")
        await until(pilot, lambda: len(head.asked) == 2)
        assert head.asked[1].prompt == "abc" and app.selected == 2
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.focused, Prompt) and app.focused.text == "abc")
        await pilot.press("escape", "s")
        saved = next(iter(tmp_path.glob("ring-transcript-*.md")))  # noqa: ASYNC240
        assert "abc" in saved.read_text() and " de" in saved.read_text()


@asynchronous
async def test_a_refused_prompt_says_why_and_the_event_is_logged() -> None:
    async with FakeHead() as head, dashboard(head) as (_, pilot):
        await ask(pilot, head, "abc")
        head.fail(0, "too_long", "the prompt has 5000 tokens; this model's context is 1024")
        head.event("warning", -1, "a request was refused: the prompt has 5000 tokens")
        await until_shown(pilot, "failed", "this model's context is 1024")
        await pilot.press("escape", "4")
        await until_shown(pilot, "warning", "a request was refused")


@asynchronous
async def test_control_characters_never_reach_the_terminal() -> None:
    async with FakeHead() as head, dashboard(head) as (_, pilot):
        await ask(pilot, head, "x")
        head.tokens(0, "a\x1b[31mred\x07\x9b2J", "\u202ebackwards", "\tend")
        head.event("error", 0, "host \x1b]0;title\x07 failed")
        screen = await until_shown(pilot, "␛[31mred", "end")
        assert "\x1b" not in screen and "\u202e" not in screen
        await pilot.press("escape", "4")
        assert "\x1b" not in await until_shown(pilot, "␛]0;title")


@asynchronous
async def test_clicks_select_and_open_prompts() -> None:
    app = Dashboard(StillFeed(running()))
    async with app.run_test(size=LARGE) as pilot:
        await until(pilot, lambda: len(app.model.streams) == 5)
        await until_shown(pilot, "5  x = [1, 2, 3]", "layers 0-3")
        async with asyncio.timeout(20):
            while not isinstance(app.screen, Trace):  # while the layout settles, a click may still miss
                await pilot.click(StreamTable, offset=(10, 4))
                await pilot.pause()
        assert app.selected == 2


@asynchronous
async def test_a_long_answer_is_shown_whole_when_it_has_ended() -> None:
    feed = StillFeed(running())
    app = Dashboard(feed)
    async with app.run_test(size=LARGE) as pilot:
        await until(pilot, lambda: len(app.model.streams) == 5)
        feed.tell(Asked(6, "start", Options()))
        app.select(6)
        for number in range(3000):
            feed.tell(Grew(6, 9, 1, f"word{number} "))
        await until_shown(pilot, "word2999")
        assert app.model.streams[6].text.count("word") == 3000
