"""A lap's geometry, from durations in ring order to intervals on the head's clock, and the log of the last laps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ring.wire.clients import Lap, LapRun

KEPT = 20_000
"""Laps in memory: about a kilobyte each, and with them every figure of the waterfall and of a token's trace."""
PROMPTS = 4096


@dataclass(frozen=True, slots=True)
class Interval:
    """One stage's part of a lap, as times on the head's clock in nanoseconds. `left` is when the next stage had it."""

    stage: int
    arrived: int
    started: int
    finished: int
    sent: int
    left: int


def intervals(lap: Lap) -> list[Interval]:
    """Where the lap was at what time; each interval begins where the one before it ends, the last ends with the lap."""
    at, parts = lap.started_ns, []
    for hop in lap.hops:
        started = at + hop.queue_ns
        finished = started + hop.compute_ns
        sent = finished + hop.send_ns
        left = sent + hop.wire_ns
        parts.append(Interval(hop.stage, at, started, finished, sent, left))
        at = left
    return parts


def end_ns(lap: Lap) -> int:
    """When the lap was back at the head."""
    return lap.started_ns + lap.duration_ns


def letter(lap: Lap) -> str:
    """A microbatch's name on screen."""
    return chr(ord("a") + lap.microbatch % 26)


def prefills(lap: Lap) -> bool:
    """Whether any of its runs is a part of a prompt."""
    return any(run.prefill for run in lap.runs)


def tokens(lap: Lap) -> int:
    """How many tokens went through the stages."""
    return sum(run.count for run in lap.runs)


def brought(run: LapRun) -> range:
    """The positions of the tokens that a run may have brought: the one after it, and after a decode step with guesses
    those after each of them. A wrong guess's position is brought again by a later lap."""
    end = run.start + run.count
    return range(end, end + 1) if run.prefill else range(run.start + 1, end + 1)


class LapLog:
    """The last laps, oldest first, and by which of them each token came. Bounded."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self.laps: deque[Lap] = deque()
        self.total = 0
        self._by_run: dict[tuple[int, int], Lap] = {}
        self._prompts: dict[int, tuple[int, bool]] = {}  # prefilled so far, and whether decoding has begun

    def add(self, lap: Lap) -> None:
        """Take a lap; the oldest makes room."""
        self.laps.append(lap)
        self.total += 1
        for run in lap.runs:
            end = run.start + run.count
            for position in brought(run):
                self._by_run[run.sequence, position] = lap
            _, decoding = self._prompts.get(run.sequence, (0, False))
            if not decoding:  # a replay after a failure prefills again, and more than the prompt
                self._prompts[run.sequence] = (end, False) if run.prefill else (run.start, True)
        while len(self._prompts) > PROMPTS:
            del self._prompts[next(iter(self._prompts))]
        if len(self.laps) > self.kept:
            oldest = self.laps.popleft()
            for run in oldest.runs:
                for position in brought(run):
                    if self._by_run.get((run.sequence, position)) is oldest:
                        del self._by_run[run.sequence, position]

    def clear(self) -> None:
        """Forget all: another ring's clock does not go with this one's."""
        self.laps.clear()
        self.forget_sequences()

    def forget_sequences(self) -> None:
        """A head that starts anew numbers its sequences anew."""
        self._by_run.clear()
        self._prompts.clear()

    def prompt_tokens(self, sequence: int) -> int | None:
        """How long a sequence's prompt is, as far as its laps tell."""
        return self._prompts.get(sequence, (None, False))[0]

    def reaching(self, sequence: int, position: int) -> Lap | None:
        """The lap that brought the token at a position."""
        return self._by_run.get((sequence, position))

    def between(self, start_ns: int, end: int, most: int) -> list[Lap]:
        """Laps that touch a span of the head's clock, oldest first; the newest `most` of them."""
        found: list[Lap] = []
        for lap in reversed(self.laps):
            if end_ns(lap) < start_ns or len(found) >= most:
                break
            if lap.started_ns <= end:
                found.append(lap)
        return found[::-1]
