"""`ring ask` and the prompt loop of pipes: prompts to a head, tokens to the terminal as they come, a table at the end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from statistics import median
from typing import Any, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from ring.answers import Completion, GenerateEvent, RingError
from ring.client import RingClient
from ring.wire.clients import StageTiming, Timings

Prompt = str | list[int]


async def ask(
    client: RingClient, prompts: list[Prompt], options: dict[str, Any], as_json: bool, out: TextIO, err: Console
) -> bool:
    """Send all prompts at once and print each answer in order, live as soon as its turn has come.

    Returns whether all of them succeeded.
    """
    async with client as ring:
        answers: list[asyncio.Queue[GenerateEvent | RingError | None]] = [asyncio.Queue() for _ in prompts]

        async def collect(prompt: Prompt, events: asyncio.Queue[GenerateEvent | RingError | None]) -> None:
            kind = {"prompt": prompt} if isinstance(prompt, str) else {"token_ids": prompt}
            try:
                async with contextlib.aclosing(ring.generate(**kind, **options)) as stream:
                    async for event in stream:
                        events.put_nowait(event)
                events.put_nowait(None)
            except RingError as error:
                events.put_nowait(error)

        done: list[Completion] = []
        async with asyncio.TaskGroup() as group:
            for prompt, events in zip(prompts, answers, strict=True):
                group.create_task(collect(prompt, events))
            for prompt, events in zip(prompts, answers, strict=True):
                completion = await print_answer(prompt, events, as_json, out, err)
                if completion is not None:
                    done.append(completion)
    if done and not as_json:
        timings = [completion.timings for completion in done if completion.timings]
        console = Console(file=out, highlight=False)
        console.print("\n" + summary(timings, sum(len(completion.token_ids) for completion in done)), soft_wrap=True)
        console.print(timing_table(timings))
    return len(done) == len(prompts)


async def print_answer(
    prompt: Prompt, events: asyncio.Queue[GenerateEvent | RingError | None], as_json: bool, out: TextIO, err: Console
) -> Completion | None:
    """Print one answer as it comes; None if it failed."""
    completion = Completion()
    if not as_json:
        out.write(prompt if isinstance(prompt, str) else "")
        out.flush()
    while (event := await events.get()) is not None:
        if isinstance(event, RingError):
            if not as_json:
                out.write("\n")
            out.flush()
            err.print(f"[red]error:[/red] {event}", highlight=False)
            if as_json:
                out.write(msgspec.json.encode({"error": {"code": event.code, "message": str(event)}}).decode() + "\n")
            return None
        if event.notice:
            err.print(f"\\[{event.notice}]", style="dim", highlight=False)
        completion.add(event)
        if not as_json:
            out.write(event.text)
            out.flush()
    if as_json:
        out.write(msgspec.json.encode(completion).decode() + "\n")
    elif not completion.text and completion.token_ids:  # a model without a tokenizer
        out.write(",".join(map(str, completion.token_ids)) + "\n")
    else:
        out.write("\n")
    out.flush()
    return completion


def summary(timings: list[Timings], tokens: int) -> str:
    """Throughput and latency in a line; medians over the answers."""
    wall = max(t.total_s for t in timings)
    ttft = [t.ttft_s for t in timings if t.ttft_s is not None]
    itl = [t.itl_s for t in timings if t.itl_s is not None]
    words = [f"{tokens} tokens in {wall:.2f} s ({tokens / wall:.1f}/s)"]
    words += [f"time to first token {median(ttft) * 1e3:.1f} ms"] if ttft else []
    words += [f"inter-token latency {median(itl) * 1e3:.2f} ms"] if itl else []
    return " · ".join(words)


def timing_table(timings: list[Timings]) -> Table:
    """Where the time went, stage by stage: means over the laps of all answers."""
    table = Table(header_style="dim")
    for column in ("stage", "laps", "compute/lap", "queue wait/lap", "wire/lap", "bytes/lap"):
        table.add_column(column, justify="right")
    for row in merge(timings):
        laps = max(row.laps, 1)
        cells = [f"{seconds / laps * 1e3:.2f} ms" for seconds in (row.compute_s, row.queue_s, row.wire_s)]
        table.add_row(str(row.stage), str(row.laps), *cells, f"{row.bytes // laps:,}")
    return table


def merge(timings: list[Timings]) -> list[StageTiming]:
    """The stages' sums over several generations."""
    merged: dict[int, StageTiming] = {}
    for stage in (stage for timing in timings for stage in timing.stages):
        into = merged.setdefault(stage.stage, StageTiming(stage.stage))
        for name in ("laps", "queue_s", "compute_s", "wire_s", "bytes"):
            setattr(into, name, getattr(into, name) + getattr(stage, name))
    return [merged[stage] for stage in sorted(merged)]


async def prompt_loop(head: str, options: dict[str, Any], console: Console) -> None:
    """Read prompts from standard input, one a line, until it ends; for pipes, as terminals have the dashboard."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line.strip():
            with contextlib.suppress(RingError):
                await ask(RingClient(head), [line.rstrip("\n")], options, False, sys.stdout, console)
