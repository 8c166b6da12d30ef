"""What the dashboard costs: processor time while idle and at 500 traces a second, and memory. `make tui-cost` runs it.

It runs the dashboard as a user would, `ring tui` on a terminal of 140x40, against a head in this process that sends laps
of three hops, with four prompts streaming. The figures are processor time of the dashboard's process over wall time.
Then an hour of such laps, two million, is told to the model as fast as it takes them, and its memory is watched.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import msgspec
import psutil

from ring.wire.clients import LapRun
from tests.tui.fake_head import FakeHead
from tests.tui.hours import live
from tests.tui.scenes import pipeline, status
from tests.tui.terminal import Terminal
from tui.state.model import Model

SPAN_S = 20.0
WARM_S = 4.0
RATE = 500
LAPS = 2_000_000
GROWTH_MB = 10.0
LIMITS = {"idle": 2.0, f"{RATE} traces/s, overview": 25.0, f"{RATE} traces/s, waterfall": 25.0}


async def measure(process: psutil.Process, terminal: Terminal) -> tuple[float, float, float]:
    """Percent of a core, megabytes, and kilobytes a second written to the terminal."""
    await asyncio.sleep(WARM_S)
    before, started, written = sum(process.cpu_times()[:2]), time.monotonic(), terminal.received
    await asyncio.sleep(SPAN_S)
    spent, passed = sum(process.cpu_times()[:2]) - before, time.monotonic() - started
    return spent / passed * 100, process.memory_info().rss / 1e6, (terminal.received - written) / passed / 1e3


async def stream(head: FakeHead) -> None:
    """Laps at RATE, each with a token for one of four streams, as a real head sends them."""
    base = pipeline(2000, sequences=4, prompt=0)
    began, first = time.monotonic(), time.monotonic_ns()
    for number in itertools.count():
        due = began + number / RATE
        if (wait := due - time.monotonic()) > 0.002:
            await asyncio.sleep(wait)
        lap = base[number % len(base)]
        start = first + number * 10**9 // RATE
        run = LapRun(1 + number % 4, 600 + number // 4, 1, False)
        head.lap(msgspec.structs.replace(lap, microbatch=number, started_ns=start, runs=[run]))
        head.tokens(number % 4, " word" if number % 40 else "\n")


async def main() -> None:
    """Measure, print a table, and fail if a limit is passed."""
    too_much = False
    async with FakeHead() as head:
        head.status = status()
        with Terminal(["tui", "--head", head.address]) as terminal:
            await terminal.until("idle", "Ready")
            process = psutil.Process(terminal.pid)
            print(f"{'':28}{'core':>8}{'limit':>8}{'memory':>10}{'to terminal':>14}")

            async def report(name: str) -> None:
                nonlocal too_much
                percent, megabytes, kilobytes = await measure(process, terminal)
                too_much |= percent > LIMITS[name]
                print(f"{name:28}{percent:>6.1f} %{LIMITS[name]:>6.0f} %{megabytes:>7.0f} MB{kilobytes:>9.1f} kB/s", flush=True)

            await report("idle")
            for number in range(4):
                terminal.keys(f"prompt {number}\r")
                while len(head.asked) <= number:
                    await asyncio.sleep(0.05)
            head.status = status(running=4)
            streaming = asyncio.create_task(stream(head))
            await report(f"{RATE} traces/s, overview")
            terminal.keys("\x1b")
            await asyncio.sleep(0.5)
            terminal.keys("2")
            await report(f"{RATE} traces/s, waterfall")
            streaming.cancel()
    print(f"{'':28}{'laps':>10}{'hours':>8}{'memory':>10}")
    model, memory = Model(), []
    for quarter in range(4):
        live(model, quarter * LAPS // 4, LAPS // 4, RATE)
        memory.append(psutil.Process().memory_info().rss / 1e6)
        laps = (quarter + 1) * LAPS // 4
        print(f"{'the model, as fast as it can':28}{laps:>10,}{laps / RATE / 3600:>8.1f}{memory[-1]:>7.0f} MB", flush=True)
    too_much |= memory[-1] - memory[0] > GROWTH_MB
    if too_much:
        raise SystemExit("more than the dashboard may cost")


if __name__ == "__main__":
    asyncio.run(main())
