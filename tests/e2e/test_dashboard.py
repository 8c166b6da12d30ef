"""The dashboard on a real terminal, on a real ring of three nodes: what it shows is what the ring says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ring.launch import free_ports
from tests.e2e.harness import NodeRing
from tests.e2e.spawn import command
from tests.tui.terminal import Terminal
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model in three."""
    folder = tmp_path_factory.mktemp("dashboard") / "shards"
    split(str(pocket_path()), folder, stages=3)
    return folder


def bare(text: str) -> str:
    """The text without spaces and line ends."""
    return "".join(text.split())


def right_pane(screen: str) -> str:
    """What stands in the pane of the selected prompt, without spaces, borders and the scroll bar."""
    lines = [line.rpartition("││")[2] for line in screen.splitlines() if "││" in line]
    return bare(re.sub(r"[│▁▂▃▄▅▆▇█]", "", "".join(lines)))


async def figures(*words: str) -> Any:
    """What `ring` prints with these words, as JSON."""
    done = await asyncio.to_thread(command, *words, "--json")
    return json.loads(done.stdout)


def shown_parts(screen: str) -> tuple[float, dict[str, float]]:
    """The mean lap on the screen, and its parts by name, in milliseconds."""
    found = re.search(r"a lap (\S+) ms = (.+?) {3}", screen)
    assert found
    parts = {name: float(value) for name, value in (part.split() for part in found[2].split(" + "))}
    return float(found[1]), parts


def test_the_screen_agrees_with_the_ring_and_survives_a_killed_node_and_head(shards: Path, tmp_path: Path) -> None:
    recording = tmp_path / "run.jsonl"

    async def run(ring: NodeRing) -> None:
        with Terminal(["tui", "--head", ring.clients, "--record", str(recording)]) as terminal:
            await terminal.until("✓ idle", "Type a prompt", "● rec")

            # `ring ask` alone: its laps are all that the dashboard has seen, and every part of them is what it says.
            asked = await figures("ask", "def fibonacci(n):", "--head", ring.clients)
            stages = asked["timings"]["stages"]
            laps = stages[0]["laps"]
            screen = await terminal.until(f"mean of {laps:,} laps", "✓ idle")
            whole, parts = shown_parts(screen)
            for names, field in ((["queue"], "queue_s"), (["compute"], "compute_s"), (["send", "wire"], "wire_s")):
                told = sum(stage[field] for stage in stages) / laps * 1e3
                assert sum(parts[name] for name in names) == pytest.approx(told, abs=0.011 * len(names)), (field, screen)
            assert sum(parts.values()) == pytest.approx(whole, abs=1e-9)

            # The same greedy prompt here.
            terminal.keys("def fibonacci(n):\r")
            await terminal.until("max len", "128 tokens")
            await terminal.until("tokens after a prompt of")
            shown = right_pane(terminal.text)
            assert bare(asked["text"])[-100:] in shown
            assert f"128tokensafterapromptof{asked['prompt_tokens']}" in shown

            # The ring's own figures.
            status = await figures("status", "--head", ring.clients)
            screen = await terminal.until("✓ idle", "0 running")
            assert f"{status['model']} · 3 stages · {status['dtype']}" in screen
            for stage in status["stages"]:
                info = stage["info"]
                assert f"layers {info['first_layer']}-{info['end_layer'] - 1}" in screen
                assert info["host"] in screen
            assert f"mean of {2 * laps:,} laps" in screen, "as many once more"
            whole, parts = shown_parts(screen)
            assert sum(parts.values()) == pytest.approx(whole, abs=1e-9)

            # Every other view.
            terminal.keys("\x1b")
            await terminal.until("x Cancel")
            terminal.keys("2")
            await terminal.until("waterfall · live")
            terminal.keys("\x1b[D")
            await terminal.until("waterfall · paused", "ms, the lap")
            terminal.keys("3")
            await terminal.until("token 128 of 128", "ms, the lap")
            terminal.keys("4")
            await terminal.until("found the head", "info")
            terminal.resize(80, 24)
            terminal.keys("1")
            await terminal.until("def fibonacci", "✓ idle", "▲")

            # A node is killed and comes back; then the head itself.
            ring.nodes[1].kill()
            await terminal.until("stage 1 lost", "Start its node again")
            ring.start(1)
            await terminal.until("✓ idle")
            ring.nodes[0].kill()
            await terminal.until("Head lost, reconnecting")
            ring.start(0)
            await terminal.until("✓ idle")
            terminal.keys("r")
            async with asyncio.timeout(60):
                while terminal.text.count("max len") < 2:
                    await asyncio.sleep(0.05)
            terminal.keys("q")
            assert await terminal.ended() == 0

    with NodeRing(shards, 3) as ring:
        asyncio.run(run(ring))
    asyncio.run(replayed(recording))


async def replayed(recording: Path) -> None:
    """The recording shows the same without a ring."""
    with Terminal(["tui", "--replay", str(recording), "--speed", "1000"]) as terminal:
        await terminal.until("replay ended", "✓", "def fibonacci", "128")
        terminal.keys("\x1b")
        await terminal.until("x Cancel")
        terminal.keys("4")
        await terminal.until("the head is gone", "the head is back")
        terminal.keys("q")
        assert await terminal.ended() == 0


@pytest.mark.parametrize("way", ["q", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_ring_up_opens_the_dashboard_and_leaves_nothing_behind(way: str) -> None:
    clients = f"tcp://127.0.0.1:{free_ports(1)[0]}"

    async def run() -> None:
        with Terminal(["up", "--nodes", "2", "--clients", clients]) as terminal:
            await terminal.until("✓ idle", "2 stages", patience=120)
            nodes = psutil.Process(terminal.pid).children(recursive=True)
            assert len(nodes) >= 2
            terminal.keys("import os\r")
            await terminal.until("decode")
            if way == "q":
                terminal.keys("\x1b")
                await terminal.until("x Cancel")
                terminal.keys("q")
            else:
                os.kill(terminal.pid, signal.Signals[way])
            code = await terminal.ended()
            assert code == 0
            _, alive = psutil.wait_procs(nodes, timeout=10)
            assert not alive
            assert "Traceback" not in terminal.text

    asyncio.run(run())


@pytest.mark.slow
def test_nodes_that_die_under_ring_up_are_events_and_start_again() -> None:
    clients = f"tcp://127.0.0.1:{free_ports(1)[0]}"

    async def run() -> None:
        with Terminal(["up", "--nodes", "2", "--clients", clients]) as terminal:
            await terminal.until("✓ idle", "2 stages", patience=120)
            nodes = {int(json_stage(child)): child for child in psutil.Process(terminal.pid).children()}
            nodes[1].kill()
            await terminal.until("stage 1 lost")
            await terminal.until("✓ idle")
            terminal.keys("\x1b")
            await terminal.until("x Cancel")
            terminal.keys("4")
            await terminal.until("stage 1 ended (killed by SIGKILL); starting it again")
            nodes[0].kill()
            await terminal.until("stage 0 ended (killed by SIGKILL); starting it again", "the head is back")
            terminal.keys("q")
            assert await terminal.ended() == 0

    asyncio.run(run())


def json_stage(process: psutil.Process) -> str:
    """Which stage a node's command line says."""
    found = re.search(r"stage-(\d+)", " ".join(process.cmdline()))
    assert found
    return found[1]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed; the same is tested on a pseudo-terminal")
def test_it_works_in_tmux(shards: Path, tmp_path: Path) -> None:
    def tmux(*arguments: str, check: bool = True) -> str:
        command = ["tmux", "-S", str(tmp_path / "tmux"), *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True).stdout

    async def shown(*words: str) -> None:
        screen = ""
        async with asyncio.timeout(60):
            while not all(word in screen for word in words):
                await asyncio.sleep(0.1)
                screen = tmux("capture-pane", "-p", "-t", "ring")

    async def run(ring: NodeRing) -> None:
        tmux(
            "new-session",
            "-d",
            "-s",
            "ring",
            "-x",
            "100",
            "-y",
            "30",
            sys.executable,
            "-m",
            "ring",
            "tui",
            "--head",
            ring.clients,
        )
        try:
            await shown("✓ idle", "Type a prompt")
            tmux("set-buffer", "import os\nimport sys\n" * 20)
            tmux("paste-buffer", "-p", "-t", "ring")
            await shown("41 lines")
            tmux("send-keys", "-t", "ring", "Enter")
            await shown("max len")
            tmux("send-keys", "-t", "ring", "C-q")
            async with asyncio.timeout(20):
                while tmux("list-sessions", check=False):
                    await asyncio.sleep(0.1)
        finally:
            tmux("kill-server", check=False)

    with NodeRing(shards, 3) as ring:
        asyncio.run(run(ring))
