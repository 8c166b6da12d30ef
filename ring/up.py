"""`ring up`: a checkpoint's name to a running ring on this machine, and something to talk to it with."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console

from ring.answers import RingError
from ring.ask import ask, prompt_loop
from ring.client import RingClient
from ring.launch import LaunchError, LocalRing, cache_folder
from weights_tools.shard import holds_shards

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

POLL_S = 0.1


def run_up(
    checkpoint: str | None,
    nodes: int,
    dtype: str | None,
    threads: int | None,
    kv_memory: int | None,
    clients: str,
    headless: bool,
    question: str | None,
    prove: Callable[[PreTrainedConfig], None],
    http: int | None = None,
) -> None:
    """Split if needed, start the nodes, wait for the ring, serve until told to stop; leaves no process behind."""
    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, style="dim", soft_wrap=True)

    check_free(clients)
    shards = cached_split(checkpoint, nodes, dtype, prove, say)
    threads = threads or max(1, (psutil.cpu_count(logical=False) or 1) // nodes)
    kv_memory = kv_memory or psutil.virtual_memory().available // 2 // nodes
    options = ["--threads", str(threads), "--kv-memory", str(kv_memory)]
    with tempfile.TemporaryDirectory(prefix="ring-logs-") as logs:
        ring = LocalRing(shards, nodes, clients, Path(logs), options, say, http)
        try:
            ring.start()
            if not headless and question is None and sys.stdin.isatty() and sys.stdout.isatty():
                asyncio.run(show(ring, clients))
                return
            say(f"starting {nodes} nodes, {threads} thread(s) each; their output is in {logs}")
            asyncio.run(serve(ring, clients, headless, question, console))
        finally:
            ring.stop()


async def show(ring: LocalRing, clients: str) -> None:
    """The dashboard, from the start: it shows the ring forming. Ends when the user leaves, or with the ring's error."""
    from tui.app import Dashboard
    from tui.feed import LiveFeed

    dashboard = Dashboard(LiveFeed(clients), starting=True)
    ring.say = lambda line: dashboard.report("warning", line)  # the screen belongs to the dashboard now
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, dashboard.exit)
    display = asyncio.create_task(dashboard.run_async())
    while not display.done():
        await asyncio.wait([display], timeout=POLL_S)
        if ring.failure:
            dashboard.exit()
            await display
    await display
    ring.check()


async def serve(ring: LocalRing, clients: str, headless: bool, question: str | None, console: Console) -> None:
    """Wait until the ring has formed, then talk to it; ends with an error when the ring does."""
    await wait_ready(ring, clients)
    console.print(f"the ring has formed; clients are served at {clients}", style="dim")
    if ring.http is not None:
        console.print(f"HTTP is served at http://127.0.0.1:{ring.http}; see /docs there", style="dim")
    options = {"max_tokens": 64}
    if headless:
        talk: asyncio.Task[bool | None] = asyncio.create_task(for_ever())
    elif question is not None:
        talk = asyncio.create_task(ask(RingClient(clients), [question], options, False, sys.stdout, console))
    else:
        talk = asyncio.create_task(prompt_loop(clients, options, console))
    while not talk.done():
        await asyncio.wait([talk], timeout=POLL_S)
        try:
            ring.check()
        except LaunchError:
            talk.cancel()
            raise
    if await talk is False:
        raise LaunchError("the prompt was not answered")


async def for_ever() -> None:
    """Until cancelled."""
    await asyncio.Event().wait()


async def wait_ready(ring: LocalRing, clients: str) -> None:
    """Until the head says that the ring has formed.

    Raises:
        LaunchError: a node ended instead.
    """
    while True:
        ring.check()
        try:
            async with RingClient(clients, timeout=0.5) as client:
                while (status := await client.status()).state != "ready":
                    if status.state == "mismatch":
                        raise LaunchError(status.detail)
                    ring.check()
                    await asyncio.sleep(POLL_S)
                return
        except RingError:
            await asyncio.sleep(POLL_S)


def check_free(clients: str) -> None:
    """Raises LaunchError if something listens at the clients' address already: it would answer in the ring's place."""
    host, _, port = clients.removeprefix("tcp://").rpartition(":")
    if not clients.startswith("tcp://") or not port.isdigit():
        raise LaunchError(f"'{clients}' is not an address such as tcp://127.0.0.1:5555")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise LaunchError(
                f"cannot serve clients at {clients}: {error.strerror}; is a ring running already? Choose another with --clients"
            ) from None


def cached_split(
    checkpoint: str | None, nodes: int, dtype: str | None, prove: Callable[[PreTrainedConfig], None], say: Callable[[str], None]
) -> Path:
    """The folder with this checkpoint's shards for so many nodes, split now unless it was before."""
    from weights_tools.checkpoint import Checkpoint, fingerprint, resolve
    from weights_tools.cli import counting
    from weights_tools.pocket import path as pocket_path
    from weights_tools.skeleton import hush_transformers
    from weights_tools.split import split

    hush_transformers()
    opened = Checkpoint(pocket_path() if checkpoint is None else resolve(checkpoint))
    print_name = fingerprint(opened, dtype)
    folder = cache_folder() / "shards" / f"{print_name[:16]}-{nodes}"
    if holds_shards(folder, nodes, print_name):
        return folder
    say(f"splitting {checkpoint or 'the pocket model'} over {nodes} nodes, into {folder}")
    started = time.monotonic()
    with counting("splitting") as count:
        split(
            opened,
            folder,
            stages=nodes,
            dtype=dtype,
            force=True,
            prove=prove,
            total=count.total,
            progress=count.advance,
        )
    say(f"split in {time.monotonic() - started:.1f} s")
    return folder
