"""What each stage did over the last minute, folded from laps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from ring.wire.clients import Lap, LapHop
from tui.state.histogram import SlidingHistogram
from tui.state.laps import Interval, end_ns, intervals, tokens

WINDOW_S = 60
RATE_S = 10


@dataclass(slots=True)
class Second:
    """One stage's sums over one second of the dashboard's clock: nanoseconds, bytes and tokens.

    `compute`, `waiting` and `blocked` together are the time in which the ring had work; they add up to the same on
    every stage. `queue`, `send` and `wire` are sums of the laps' parts.
    """

    at: int
    laps: int = 0
    compute: int = 0
    waiting: int = 0
    blocked: int = 0
    queue: int = 0
    send: int = 0
    wire: int = 0
    bytes: int = 0
    tokens: int = 0


Sum = Literal["laps", "compute", "waiting", "blocked", "queue", "send", "wire", "bytes", "tokens"]


@dataclass(frozen=True, slots=True)
class Shares:
    """How a stage spent the time in which the ring had work; the three add up to one."""

    busy: float
    waiting: float
    blocked: float


@dataclass(slots=True)
class StageStats:
    """One stage's sliding minute: percentiles in nanoseconds, and sums by the second."""

    stage: int
    queue: SlidingHistogram = field(default_factory=SlidingHistogram)
    compute: SlidingHistogram = field(default_factory=SlidingHistogram)
    link: SlidingHistogram = field(default_factory=SlidingHistogram)
    seconds: deque[Second] = field(default_factory=lambda: deque(maxlen=WINDOW_S))
    _free_since: int | None = None

    def add(self, hop: LapHop, part: Interval, count: int, idle: int, follows: bool, at: float) -> None:
        """Take this stage's part of a lap of `count` tokens, before which the whole ring was idle for `idle` ns.

        `follows` is False if the laps before it were not seen: what the stage did meanwhile is then unknown.
        """
        self.queue.add(hop.queue_ns, at)
        self.compute.add(hop.compute_ns, at)
        self.link.add(hop.send_ns + hop.wire_ns, at)
        if not self.seconds or self.seconds[-1].at < int(at):
            self.seconds.append(Second(int(at)))
        second = self.seconds[-1]
        second.laps += 1
        second.queue += hop.queue_ns
        second.compute += hop.compute_ns
        second.send += hop.send_ns
        second.wire += hop.wire_ns
        second.bytes += hop.bytes
        second.tokens += count
        free, self._free_since = self._free_since, part.finished
        if free is not None and follows:
            # It was free from the end of the microbatch before. Until this one arrived it waited for input; if it did
            # not start then, it was still busy with sending the one before.
            second.waiting += max(0, part.arrived - free - idle)
            second.blocked += max(0, part.started - max(free, part.arrived))

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        for histogram in (self.queue, self.compute, self.link):
            histogram.expire(now)
        while self.seconds and self.seconds[0].at <= now - WINDOW_S:
            self.seconds.popleft()

    def sum(self, what: Sum) -> int:
        """A sum over the window."""
        return sum(getattr(second, what) for second in self.seconds)

    def rate(self, now: float, what: Literal["bytes", "tokens", "laps"]) -> float:
        """So many a second, over the last ten whole seconds."""
        last = int(now)
        total: int = sum(getattr(second, what) for second in self.seconds if last - RATE_S <= second.at < last)
        return total / RATE_S

    def shares(self) -> Shares | None:
        """How it spent its time; None if it had no work."""
        busy, waiting, blocked = self.sum("compute"), self.sum("waiting"), self.sum("blocked")
        total = busy + waiting + blocked
        return Shares(busy / total, waiting / total, blocked / total) if total else None

    def sparkline(self, now: float, buckets: int) -> list[float]:
        """Seconds of compute per second of time, oldest first, over the last minute's whole seconds."""
        values = [0.0] * buckets
        for second in self.seconds:
            bucket = buckets - 1 - int((int(now) - 1 - second.at) * buckets / WINDOW_S)
            if 0 <= bucket < buckets:
                values[bucket] += second.compute / 1e9 * buckets / WINDOW_S
        return values


@dataclass(frozen=True, slots=True)
class MeanLap:
    """The mean lap of the last minute, in nanoseconds: the four parts add up to the whole."""

    laps: int
    queue: float
    compute: float
    send: float
    wire: float

    @property
    def total(self) -> float:
        """The lap."""
        return self.queue + self.compute + self.send + self.wire


class RingStats:
    """All stages' sliding minutes."""

    def __init__(self) -> None:
        self.stages: dict[int, StageStats] = {}
        self.lap = SlidingHistogram()
        self._covered = 0
        self._microbatch = -1

    def add(self, lap: Lap, at: float) -> None:
        """Take a lap that has come round. They come in the order in which they started."""
        count = tokens(lap)
        idle = max(0, lap.started_ns - self._covered)
        follows = lap.microbatch == self._microbatch + 1
        self._covered, self._microbatch = max(end_ns(lap), self._covered), lap.microbatch
        self.lap.add(lap.duration_ns, at)
        for hop, part in zip(lap.hops, intervals(lap), strict=True):
            stats = self.stages.get(hop.stage)
            if stats is None:
                stats = self.stages[hop.stage] = StageStats(hop.stage)
            stats.add(hop, part, count, idle, follows, at)

    def expire(self, now: float) -> None:
        """Forget what is older than the window."""
        self.lap.expire(now)
        for stats in self.stages.values():
            stats.expire(now)

    def mean_lap(self) -> MeanLap | None:
        """The parts of a lap, on average; None without laps."""
        if not self.stages:
            return None
        laps = next(iter(self.stages.values())).sum("laps")
        if not laps:
            return None
        whole = {
            what: sum(stats.sum(what) for stats in self.stages.values()) / laps for what in ("queue", "compute", "send", "wire")
        }
        return MeanLap(laps, **whole)
