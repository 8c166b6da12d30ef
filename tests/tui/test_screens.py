"""Every screen and every key, against a head that speaks the real protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from textual.widgets import Input

from ring.launch import free_ports
from tests.tui.drive import LARGE, SMALL, ask, asynchronous, dashboard, text_of, until, until_shown
from tests.tui.fake_head import FakeHead
from tests.tui.scenes import StillFeed, running, stage, status
from tui.app import Dashboard
from tui.feed import LiveFeed
from tui.messages import Asked, Grew, Options
from tui.screens.options import OptionsScreen
from tui.screens.overview import Overview
from tui.screens.trace import Trace
from tui.screens.waterfall import Waterfall
from tui.widgets.gantt import Gantt
from tui.widgets.prompt import Prompt
from tui.widgets.stream_table import StreamTable
from tui.widgets.token_strip import TokenStrip

# ---- states ----


@asynchronous
async def test_states_from_no_head_to_a_ring_that_runs() -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    app = Dashboard(LiveFeed(address))
    async with app.run_test(size=LARGE) as pilot:
        await until_shown(pilot, f"Connecting to {address}", "attempt 1", "ring up")
        async with FakeHead(address) as head:
            head.status = status("forming", "waiting for stage 1", stages=0)
            await until_shown(pilot, "The ring is forming", "waiting for stage 1", "… forming")
            head.status = status("mismatch", "the node at tcp://x holds a shard of another model", stages=0)
            await until_shown(pilot, "The ring cannot form", "another model", "✗ mismatch")
            head.status = status()
            await until_shown(pilot, "✓ idle", "0 alpha", "1 beta", "2 gamma", "Ready. Type a prompt")
            await head.watching.wait()
            head.status = status(running=2)
            head.laps(30)
            await until_shown(pilot, "✓ running", "▲ slowest", "stage 2", "a lap")
            head.status = status("forming", "stage 1 (beta, layers 4-7) is gone or cut off", running=2, missing=1)
            head.event("warning", 1, "stage 1 (beta, layers 4-7) is gone or cut off; 2 streams wait for it to return")
            await until_shown(pilot, "stage 1 lost", "stage 1 (beta, layers 4-7)", "✗ lost")
            head.status = status()
            await until_shown(pilot, "✓", "a lap")
        await until_shown(pilot, "Head lost, reconnecting", "✗ head lost")
        async with FakeHead(address):
            await until_shown(pilot, "✓ idle")
        await pilot.press("escape", "4")
        await until_shown(pilot, "found the head", "layers 4-7) is gone", "the head is gone", "the head is back")


@asynchronous
async def test_a_head_of_another_version_has_its_screen() -> None:
    async with FakeHead(protocol=99) as head, dashboard(head, ready=False) as (_, pilot):
        await until_shown(pilot, "This head cannot be used", "speaks protocol 99", "install the same version")


@asynchronous
async def test_every_state_fits_a_small_terminal() -> None:
    async with FakeHead() as head, dashboard(head, SMALL) as (app, pilot):
        head.laps(60)
        head.status = status(running=3)
        screen = await until_shown(pilot, "✓ running", "0 alpha", "1 beta", "2 gamma ▲", "102.3 tok/s")
        assert all(word in screen for word in ("queue", "comp", "wire", "busy", "wait", "block", "F1", "prompt"))
        head.status = status("forming", "stage 1 (beta, layers 4-7) is gone or cut off", missing=1)
        await until_shown(pilot, "stage 1 (beta, layers 4-7)", "Start its node again")
        assert app.screen.query_one(Prompt).region.bottom <= 24


# ---- prompts ----


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
    from textual import events

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


# ---- views ----


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


# ---- habits ----


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
async def test_a_ring_of_one_and_of_many_stages() -> None:
    import msgspec

    async with FakeHead() as head, dashboard(head) as (_, pilot):
        head.status = status(stages=1)
        await until_shown(pilot, "embed · layers 0-3")
        base = status()
        base.stages = [
            msgspec.structs.replace(base.stages[0], info=msgspec.structs.replace(stage(0), stage=k, stages=12, host=f"h{k}"))
            for k in range(12)
        ]
        head.status = base
        await until_shown(pilot, "11 h11")


@asynchronous
async def test_a_line_from_the_launcher_becomes_an_event() -> None:
    async with FakeHead() as head, dashboard(head) as (app, pilot):
        await asyncio.to_thread(app.report, "warning", "stage 1 ended (killed by SIGKILL); starting it again")
        await pilot.press("escape", "4")
        await until_shown(pilot, "stage 1 ended (killed by SIGKILL); starting it again")


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
