"""What each state of the head and the ring looks like."""

from __future__ import annotations

import msgspec

from ring.launch import free_ports
from tests.tui.drive import LARGE, SMALL, asynchronous, dashboard, until, until_shown
from tests.tui.fake_head import FakeHead
from tests.tui.scenes import stage, status
from tui.app import Dashboard
from tui.feed import LiveFeed
from tui.widgets.prompt import Prompt


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
async def test_a_ring_that_starts_with_the_dashboard_is_awaited_calmly() -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    app = Dashboard(LiveFeed(address), starting=True)
    async with app.run_test(size=SMALL) as pilot:
        screen = await until_shown(pilot, "The ring is starting", "You can type already")
        assert "ring up" not in screen
        app.screen.query_one(Prompt).fill("early")
        await pilot.press("enter")
        async with FakeHead(address) as head:
            await until(pilot, lambda: [request.prompt for request in head.asked] == ["early"])


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


@asynchronous
async def test_a_ring_of_one_and_of_many_stages() -> None:
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
