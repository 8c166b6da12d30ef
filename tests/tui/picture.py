"""The picture for the README: a real ring of three nodes on the pocket model, with several prompts streaming.

python -m tests.tui.picture docs/dashboard.svg
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.e2e.harness import NodeRing
from tui.app import Dashboard
from tui.feed import LiveFeed
from tui.messages import Options
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split

PROMPTS = (
    "import os",
    "class Queue:",
    "def read_file(path):",
    "def main(argv=None):",
    "for name in sorted(os.listdir(path)):",
    "def parse(self, text):",
)
SIZE = (140, 40)
SECONDS = 12.0


async def draw(clients: str) -> str:
    """Ask, wait until all of them stream, and take the picture."""
    app = Dashboard(LiveFeed(clients))
    async with app.run_test(size=SIZE) as pilot:
        while not app.model.ready:
            await pilot.pause(0.1)
        for prompt in PROMPTS[:2]:
            app.ask(prompt, Options(max_tokens=48))
        while app.model.live_streams():
            await pilot.pause(0.1)
        for prompt in PROMPTS[2:]:
            app.ask(prompt, Options(max_tokens=900, temperature=0.7, seed=3))
        await pilot.pause(SECONDS)
        await pilot.press("escape", "up")
        while app.model.condition != "running" or app.model.status is None or app.model.status.tokens_per_s == 0:
            await pilot.pause(0.1)
        app.select(max(stream.number for stream in app.model.streams.values() if stream.running))
        await pilot.pause(1.0)
        return app.export_screenshot(title="ring up")


def main() -> None:
    """Split, start, draw."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        split(str(pocket_path()), shards, stages=3)
        with NodeRing(shards, 3) as ring:
            target.write_text(asyncio.run(draw(ring.clients)))
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
