"""Running the dashboard in a test: the app on a fake head or a still feed, and what is on its screen."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

from textual.pilot import Pilot

from tests.tui.fake_head import FakeHead
from tui.app import Dashboard
from tui.feed import LiveFeed
from tui.screens.base import View
from tui.widgets.prompt import Prompt

PATIENCE_S = 8.0
LARGE, SMALL = (140, 40), (80, 24)
Arguments = ParamSpec("Arguments")


def asynchronous(test: Callable[Arguments, Coroutine[Any, Any, None]]) -> Callable[Arguments, None]:
    """A test that needs an event loop."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def text_of(app: Dashboard) -> str:
    """All that is on the screen, as text."""
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    """Until something is so."""
    app = pilot.app
    assert isinstance(app, Dashboard)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await pilot.pause(0.02)
    except TimeoutError:
        raise AssertionError(f"it never came to be:\n{text_of(app)}") from None


async def until_shown(pilot: Pilot[None], *words: str) -> str:
    """Until all of these are on the screen; returns the screen."""
    app = pilot.app
    assert isinstance(app, Dashboard)
    try:
        await until(pilot, lambda: all(word in text_of(app) for word in words))
    except AssertionError as error:
        missing = [word for word in words if word not in text_of(app)]
        raise AssertionError(f"never shown: {missing}\n{error}") from None
    return text_of(app)


async def settle(pilot: Pilot[None]) -> None:
    """Draw all that is known: what is laid out by one drawing is filled by the next."""
    app = pilot.app
    assert isinstance(app, Dashboard)
    before, same = "", 0
    while same < 3:
        app.model.tick(app.feed.now())
        if isinstance(app.screen, View):
            app.screen.draw(True)
        await pilot.pause()
        same = same + 1 if text_of(app) == before else 0
        before = text_of(app)


@asynccontextmanager
async def dashboard(
    head: FakeHead, size: tuple[int, int] = LARGE, ready: bool = True
) -> AsyncIterator[tuple[Dashboard, Pilot[None]]]:
    """The dashboard on a fake head."""
    app = Dashboard(LiveFeed(head.address))
    async with app.run_test(size=size, notifications=True) as pilot:
        if ready:
            await until(pilot, lambda: app.model.ready and head.watching.is_set())
        yield app, pilot


async def ask(pilot: Pilot[None], head: FakeHead, prompt: str) -> int:
    """Put in a prompt and send it; returns its number on the fake head."""
    index = len(head.asked)
    pilot.app.screen.query_one(Prompt).fill(prompt)
    await pilot.press("enter")
    await until(pilot, lambda: len(head.asked) > index)
    return index
