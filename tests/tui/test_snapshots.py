"""A picture of every screen at two sizes, as SVG. After an intended change: `make snapshots`, and look at them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.tui.drive import LARGE, SMALL, asynchronous, settle, text_of
from tests.tui.scenes import ADDRESS, StillFeed, broken, found, lost, running, status
from tui.app import Dashboard
from tui.messages import Link, Message

FOLDER = Path(__file__).parent / "snapshots"
VERSIONS = f"the head at {ADDRESS} speaks protocol 2, this client 1; install the same version of ring on both"
FOREIGN = (
    "the node at tcp://10.0.0.2:5600 on beta (stage 1 of 3) holds a shard of another model or dtype than the head; "
    "give it a shard of the same split"
)
LEFT = ["escape", "up"]
Story = tuple[list[tuple[float, Message]], float, dict[str, list[str]]]
"""What is told, what time it then is, and the keys that lead from one picture to the next."""
STORIES: dict[str, Story] = {
    "connecting": ([(0.0, Link("connecting", 3))], 9.0, {"connecting": []}),
    "refused": ([(0.0, Link("refused", 1, VERSIONS))], 4.0, {"refused": []}),
    "forming": (found()[:3], 14.0, {"forming": []}),
    "mismatch": ([*found()[:2], (2.0, status("mismatch", FOREIGN, stages=0))], 7.0, {"mismatch": []}),
    "idle": (found(), 4.0, {"idle": []}),
    "stage-lost": (broken(), 21.0, {"stage-lost": LEFT, "events": ["4"]}),
    "head-lost": (lost(), 23.0, {"head-lost": LEFT}),
    "running": (
        running(),
        17.2,
        {
            "running": LEFT,
            "options": ["ctrl+o"],
            "help": ["escape", "f1"],
            "trace": ["escape", "3", "left", "left"],
            "waterfall": ["2"],
            "lap": ["left"] * 5,
            "prefill": ["home", "pagedown", "minus"],
            "light": ["1", "d"],
        },
    ),
}


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("story", STORIES)
@asynchronous
async def test_the_pictures_are_as_they_were(
    story: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    messages, at, pictures = STORIES[story]
    feed = StillFeed(messages)
    app = Dashboard(feed)
    app.animation_level = "none"
    async with app.run_test(size=size) as pilot:
        await feed.told.wait()
        feed.at = at
        await pilot.pause()
        for name, keys in pictures.items():
            for key in keys:
                await pilot.press(key)
            await settle(pilot)
            compare(app, FOLDER / f"{name}-{size[0]}x{size[1]}.svg", tmp_path)


def compare(app: Dashboard, kept: Path, folder: Path) -> None:
    """The screen with the picture that is kept, or keep it."""
    picture = app.export_screenshot()
    if os.environ.get("RING_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        kept.write_text(picture)
    fresh = folder / kept.name
    fresh.write_text(picture)
    same = kept.exists() and kept.read_text() == picture
    assert same, f"{fresh} is not {kept}; if it should be, `make snapshots` keeps it. It shows:\n{text_of(app)}"
