"""A picture of every screen at two sizes, as SVG. After an intended change: `make snapshots`, and look at them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from textual.widgets import TextArea

from tests.tui.drive import LARGE, SMALL, asynchronous, text_of
from tests.tui.scenes import ADDRESS, StillFeed, broken, found, lost, running, status
from tui.app import Dashboard
from tui.messages import Link, Message

FOLDER = Path(__file__).parent / "snapshots"
VERSIONS = f"the head at {ADDRESS} speaks protocol 2, this client 1; install the same version of ring on both"
FOREIGN = (
    "the node at tcp://10.0.0.2:5600 on beta (stage 1 of 3) holds a shard of another model or dtype than the head; "
    "give it a shard of the same split"
)
Scene = tuple[list[tuple[float, Message]], list[str], float]
LEFT = ["escape", "up"]
SCENES: dict[str, Scene] = {
    "connecting": ([(0.0, Link("connecting", 3))], [], 9.0),
    "refused": ([(0.0, Link("refused", 1, VERSIONS))], [], 4.0),
    "forming": (found()[:3], [], 14.0),
    "mismatch": ([*found()[:2], (2.0, status("mismatch", FOREIGN, stages=0))], [], 7.0),
    "idle": (found(), [], 4.0),
    "running": (running(), LEFT, 17.2),
    "stage-lost": (broken(), LEFT, 21.0),
    "head-lost": (lost(), LEFT, 23.0),
    "waterfall": (running(), ["escape", "2"], 17.2),
    "lap": (running(), ["escape", "2", *["left"] * 5], 17.2),
    "prefill": (running(), ["escape", "2", "home", "pagedown", "minus"], 17.2),
    "trace": (running(), [*LEFT, "3", "left", "left"], 17.2),
    "events": (broken(), ["escape", "4"], 21.0),
    "options": (running(), ["ctrl+o"], 17.2),
    "help": (running(), ["f1"], 17.2),
    "light": (running(), [*LEFT, "d"], 17.2),
}


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SCENES)
@asynchronous
async def test_the_picture_is_as_it_was(
    name: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    picture, text = await draw(name, size)
    kept = FOLDER / f"{name}-{size[0]}x{size[1]}.svg"
    if os.environ.get("RING_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        kept.write_text(picture)
    fresh = tmp_path / kept.name
    fresh.write_text(picture)
    same = kept.exists() and kept.read_text() == picture
    assert same, f"{fresh} is not {kept}; if it should be, `make snapshots` keeps it. It shows:\n{text}"


async def draw(name: str, size: tuple[int, int]) -> tuple[str, str]:
    """A scene as SVG and as text."""
    story, keys, at = SCENES[name]
    feed = StillFeed(story)
    app = Dashboard(feed)
    app.animation_level = "none"
    async with app.run_test(size=size) as pilot:
        await feed.told.wait()
        feed.at = at
        for area in app.screen.query(TextArea):
            area.cursor_blink = False
        await pilot.pause()
        for key in keys:
            await pilot.press(key)
        for _ in range(3):  # what is laid out by one drawing is filled by the next
            app._drawn = (-1, float("-inf"))
            app.draw()
            await pilot.pause()
        return app.export_screenshot(), text_of(app)
