"""A made-up ring that is the same every time: its messages, and a feed that tells them and then stands still."""

from __future__ import annotations

import asyncio
import random

from ring.wire.clients import Event, Lap, LapHop, LapRun, StageStatus, StageTiming, State, Status, Timings
from ring.wire.messages import PROTOCOL, StageInfo
from tui.feed import Take, ignore
from tui.messages import Asked, Ended, Grew, Link, Message, Options

ADDRESS = "tcp://10.0.0.1:5555"
STARTED = 1_700_000_000.0
HOSTS = ("alpha", "beta", "gamma")
LAYERS = (0, 4, 8, 12)
COMPUTE_MS = (7.1, 7.4, 9.8)
WIRE_MS = 0.06
EPOCH = 7
LONG, SHORT = 600, 10
"""Tokens of the first prompt and of the others."""
PROMPTS = (
    "import os\n\ndef walk(path):",
    "def fibonacci(n):",
    "class Node:\n    def __init__(self, ",
    "# Die Größe der Häuser: 東京の夜\n",
    "x = [1, 2, 3]",
)
WORDS = [
    " return",
    " self",
    ".",
    "path",
    "\n    ",
    "if",
    " not",
    " os",
    "(",
    ")",
    ":",
    " x",
    " =",
    " 1",
    "größe",
    "東京",
    ",",
    " for",
]


class StillFeed:
    """A feed without a head: messages are put in by hand, and its clock moves only with them."""

    def __init__(self, messages: list[tuple[float, Message]] | None = None) -> None:
        self.name = ADDRESS
        self.take: Take = ignore
        self.started = STARTED
        self.messages = messages or []
        self.at = 0.0
        self.asked: list[tuple[int, str, Options]] = []
        self.told = asyncio.Event()

    def now(self) -> float:
        """The time of the last message, or later if a test says so."""
        return self.at

    async def run(self) -> None:
        """Tell all messages at once."""
        for at, message in self.messages:
            self.tell(message, at)
        self.told.set()

    def tell(self, message: Message, at: float | None = None) -> None:
        """One message more."""
        self.at = self.at if at is None else at
        self.take(message)

    async def ask(self, stream: int, prompt: str, options: Options) -> None:
        """Note it; cancelling is told as by the real feed."""
        self.asked.append((stream, prompt, options))
        self.take(Asked(stream, prompt, options))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.take(Ended(stream, "cancelled"))
            raise


def stage(number: int, stages: int = 3) -> StageInfo:
    """What a made-up node says of itself."""
    return StageInfo(
        stage=number,
        stages=stages,
        first_layer=LAYERS[number],
        end_layer=LAYERS[number + 1],
        layers=12,
        fingerprint="f" * 16,
        dtype="bfloat16",
        host=HOSTS[number],
        pid=4000 + number,
        incarnation=number,
        clock=f"boot-{number}",
        version="0.1.0",
        listen=f"tcp://10.0.0.{number + 1}:5600",
        shard_bytes=(134, 57, 134)[number] * 10**6,
        kv_tokens=20_000,
        kv_token_bytes=6144,
        threads=2,
    )


def status(
    state: State = "ready",
    detail: str = "",
    running: int = 0,
    waiting: int = 0,
    stages: int = 3,
    missing: int | None = None,
) -> Status:
    """What the made-up head says."""
    return Status(
        request=1,
        protocol=PROTOCOL,
        model="gpt2",
        dtype="bfloat16",
        state=state,
        detail=detail,
        epoch=EPOCH,
        stages=[StageStatus(stage(k), resident_bytes=(420 + 11 * k) * 10**6, kv_used=640 * running) for k in range(stages)],
        context=1024,
        kv_tokens=20_000,
        kv_used=640 * running,
        running=running,
        waiting=waiting,
        in_flight=min(running, 4),
        tokens_per_s=102.3 if running else 0.0,
        finished=2,
        failed=1,
        uptime_s=912.0,
        missing=missing,
    )


def pipeline(count: int, sequences: int = 4, prompt: int = LONG, start_ns: int = 5 * 10**9) -> list[Lap]:
    """Laps of a ring that computes as COMPUTE_MS says: one prompt in chunks of 128 first, with the last chunk the other
    sequences' short prompts, then decode steps.

    At most four are in flight; each stage takes them in order, one at a time.
    """
    dice = random.Random(1)
    free = [start_ns] * len(COMPUTE_MS)
    returned: list[int] = []
    laps = []
    for number in range(count):
        prefill = number * 128 < prompt
        began = max(start_ns, returned[number - 4] if number >= 4 else 0) + 150_000
        at, hops = began, []
        for k, usual in enumerate(COMPUTE_MS):
            compute = int(usual * 1e6 * dice.uniform(0.95, 1.1) * (3 if prefill else 1))
            started = max(at, free[k] + 40_000)
            send, wire = 8_000, int(WIRE_MS * 1e6 * dice.uniform(0.8, 1.5))
            hops.append(LapHop(k, started - at, compute, send, wire, (8 if k == 0 else 3072) * (128 if prefill else 1) + 90))
            free[k] = started + compute
            at = free[k] + send + wire
        returned.append(at)
        if prefill:
            runs = [LapRun(1, number * 128, min(128, prompt - number * 128), True)]
            if (number + 1) * 128 >= prompt:
                runs += [LapRun(sequence, 0, SHORT, True) for sequence in range(2, sequences + 1)]
        else:
            step = number - -(-prompt // 128)
            sequence = 1 + step % sequences
            runs = [LapRun(sequence, (prompt if sequence == 1 else SHORT) + step // sequences, 1, False)]
        laps.append(Lap(2, number, EPOCH, began, at - began, hops, runs))
    return laps


def timings(laps: int) -> Timings:
    """Of a finished generation."""
    stages = [StageTiming(k, laps, 0.002 * laps, COMPUTE_MS[k] / 1e3 * laps, 0.0001 * laps, 3162 * laps) for k in range(3)]
    return Timings(0.001, 0.312, 0.0394, 0.312 + 0.0394 * (laps - 1), stages)


def found() -> list[tuple[float, Message]]:
    """Up to a ring that is ready and idle."""
    hosts = " -> ".join(f"{k}:{host}" for k, host in enumerate(HOSTS))
    formed = Event(1, STARTED + 3, "info", -1, f"the ring has formed: 3 stages ({hosts}), 20000 tokens of KV cache")
    return [
        (0.0, Link("connecting", 1)),
        (2.0, Link("connected")),
        (2.0, status("forming", "waiting for stage 1 at tcp://10.0.0.2:5600, which does not answer", stages=0)),
        (3.0, formed),
        (3.0, status()),
    ]


def running() -> list[tuple[float, Message]]:
    """A minute in which five prompts were asked; three of them still stream."""
    story = found()
    for number, prompt in enumerate(PROMPTS, 1):
        sampled = Options(128, 0.8, 0.95, 50, 7) if number == 3 else Options()
        story.append((4.0 + number / 10, Asked(number, prompt, sampled)))
    laps = pipeline(1200)
    at = 5.0
    dice = random.Random(2)
    for lap in laps:
        at = (lap.started_ns + lap.duration_ns) / 1e9
        for run in lap.runs:
            token = run.start + run.count - (LONG if run.sequence == 1 else SHORT)
            if token >= 0 and (token < 101 or run.sequence > 1):
                story.append((at, Grew(run.sequence, run.sequence, 1, dice.choice(WORDS))))
        story.append((at, lap))
    story += [
        (at, Ended(1, "length", "", "", LONG, 0, timings(101))),
        (at, Ended(5, "failed", "busy", "the ring is busy: 256 requests are waiting already; try again later")),
        (
            at,
            Event(1, STARTED + at, "warning", -1, "a request was refused: the ring is busy: 256 requests are waiting already"),
        ),
        (at, status(running=3)),
    ]
    return story


def broken() -> list[tuple[float, Message]]:
    """The same ring, just after stage 1 was killed."""
    story = running()
    at = story[-1][0]
    detail = "stage 1 (beta, layers 4-7) is gone or cut off"
    return [
        *story,
        (at + 1, Event(1, STARTED + at + 1, "warning", 1, f"{detail}; 3 streams wait for it to return")),
        (at + 1, status("forming", detail, running=3, missing=1)),
    ]


def lost() -> list[tuple[float, Message]]:
    """The same ring, just after its head was killed."""
    story = running()
    at = story[-1][0]
    gone = f"the head at {ADDRESS} has gone"
    return [*story, (at + 1, Link("lost", 1)), *[(at + 1, Ended(n, "failed", "no_head", gone)) for n in (2, 3, 4)]]
