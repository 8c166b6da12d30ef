"""The live feed against a head that comes, goes, freezes and speaks another version."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from ring.answers import NoHead
from ring.client import RingClient
from ring.launch import free_ports
from ring.wire.clients import Event, Lap, Status
from tests.tui.drive import asynchronous
from tests.tui.fake_head import FakeHead
from tui.feed import LiveFeed
from tui.messages import Asked, Ended, Grew, Link, Message, Options


@contextlib.asynccontextmanager
async def listening(address: str) -> AsyncIterator[tuple[LiveFeed, list[Message]]]:
    feed, messages = LiveFeed(address), list[Message]()
    feed.take = messages.append
    running = asyncio.create_task(feed.run())
    yield feed, messages
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def phases(messages: list[Message]) -> list[str]:
    return [message.phase for message in messages if isinstance(message, Link)]


@asynchronous
async def test_status_laps_and_events_are_told() -> None:
    async with FakeHead() as head, listening(head.address) as (_, messages):
        await head.watching.wait()
        sent = head.laps(20)
        head.event("warning", 1, "something")
        for kind in (Event, Status):
            await until(lambda kind=kind: any(isinstance(message, kind) for message in messages))  # type: ignore[misc]
        laps = [message for message in messages if isinstance(message, Lap)]
        assert [lap.microbatch for lap in laps] == [lap.microbatch for lap in sent]
        assert phases(messages) == ["connecting", "connected"]


@asynchronous
async def test_a_prompt_is_followed_to_its_end() -> None:
    async with FakeHead() as head, listening(head.address) as (feed, messages):
        options = Options(max_tokens=9, temperature=0.5, top_p=0.9, top_k=3, seed=4, stop=["x"])
        asking = asyncio.create_task(feed.ask(5, "hello", options))
        await until(lambda: bool(head.asked))
        got = head.asked[0]
        assert (got.prompt, got.max_tokens, got.temperature, got.top_p) == ("hello", 9, 0.5, 0.9)
        assert (got.top_k, got.seed, got.stop) == (3, 4, ["x"])
        head.tokens(0, "a", "", "b")
        head.finish(0, "length")
        await asking
        own = [message for message in messages if isinstance(message, Asked | Grew | Ended)]
        assert own[0] == Asked(5, "hello", options)
        grown = [message for message in own if isinstance(message, Grew)]
        assert (sum(message.tokens for message in grown), "".join(message.text for message in grown)) == (3, "ab")
        end = own[-1]
        assert isinstance(end, Ended) and (end.outcome, end.prompt_tokens, end.seed) == ("length", 600, 99)


@asynchronous
async def test_a_refused_and_a_cancelled_prompt() -> None:
    async with FakeHead() as head, listening(head.address) as (feed, messages):
        first = asyncio.create_task(feed.ask(1, "a", Options()))
        await until(lambda: len(head.asked) == 1)
        head.fail(0, "busy", "the ring is busy")
        await first
        assert messages[-1] == Ended(1, "failed", "busy", "the ring is busy")
        second = asyncio.create_task(feed.ask(2, "b", Options()))
        await until(lambda: len(head.asked) == 2)
        second.cancel()
        await until(lambda: head.cancelled == [head.asked[1].request])
        assert Ended(2, "cancelled") in messages


@asynchronous
async def test_a_prompt_waits_for_the_first_head_and_for_a_lost_one() -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    async with listening(address) as (feed, messages):
        asking = asyncio.create_task(feed.ask(1, "early", Options()))
        await until(lambda: len(messages) >= 2)
        async with FakeHead(address) as head:
            await until(lambda: bool(head.asked))
            head.tokens(0, "x")
            await until(lambda: any(isinstance(message, Grew) for message in messages))
        async with FakeHead(address) as head:
            await until(lambda: bool(head.asked))
            assert len(head.asked[0].generated) == 1, "the rest is asked for, from the token that is there"
            head.tokens(0, "y")
            head.finish(0, "length")
            await asking
        grown = [message for message in messages if isinstance(message, Grew)]
        assert "".join(message.text for message in grown) == "xy"
        end = next(message for message in messages if isinstance(message, Ended))
        assert end.outcome == "length"


@asynchronous
async def test_it_reconnects_to_a_head_that_returns() -> None:
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    async with listening(address) as (_, messages):
        async with FakeHead(address) as head:
            await head.watching.wait()
        await until(lambda: "lost" in phases(messages))
        async with FakeHead(address) as head:
            await head.watching.wait()
            head.laps(1)
            await until(lambda: isinstance(messages[-1], Lap | Status) and any(isinstance(m, Lap) for m in messages))
    assert phases(messages)[:2] == ["connecting", "connected"] and phases(messages)[-1] == "connected"


@asynchronous
async def test_another_version_is_said_and_tried_again() -> None:
    async with FakeHead(protocol=99) as head, listening(head.address) as (_, messages):
        await until(lambda: "refused" in phases(messages))
        refused = next(message for message in messages if isinstance(message, Link) and message.phase == "refused")
        assert "speaks protocol 99" in refused.detail


@asynchronous
async def test_a_client_that_is_closed_ends_what_waits() -> None:
    async with FakeHead() as head:
        async with RingClient(head.address) as client:
            asking = asyncio.create_task(client.complete("x"))
            await until(lambda: bool(head.asked))
        with pytest.raises(NoHead):
            await asyncio.wait_for(asking, 10)
