"""The model: every message folded into plain state with bounded memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ring.wire.clients import Event, Lap, Severity, Status
from tui.messages import Asked, Ended, Grew, Link, Message
from tui.state.condition import Condition, condition
from tui.state.laps import LapLog, end_ns
from tui.state.stages import RingStats
from tui.state.streams import Stream

EVENTS = 2000
ENDED_STREAMS = 200
LAG_S = 0.2
BUSY_S = 1.5
"""The ring counts as running for so long after a lap."""


@dataclass(frozen=True, slots=True)
class Happening:
    """A line of the events view; `at` is seconds since 1970, `stage` -1 where it concerns none."""

    at: float
    severity: Severity
    stage: int
    message: str


class Model:
    """What the dashboard knows. `take` folds a message in; `tick` lets time pass.

    `now` is the feed's clock, in seconds since `started` (which is since 1970); `version` changes with what
    should be seen at once.
    """

    def __init__(self, started: float = 0.0) -> None:
        self.started = started
        self.now = 0.0
        self.version = 0
        self.link = Link("connecting")
        self.condition: Condition = "connecting"
        self.condition_since = 0.0
        self.status: Status | None = None
        self.stats = RingStats()
        self.log = LapLog()
        self.last_lap_at: float | None = None
        self.events: deque[Happening] = deque(maxlen=EVENTS)
        self.happened = 0
        self.streams: dict[int, Stream] = {}
        self._epoch: int | None = None

    def take(self, message: Message, at: float) -> None:
        """Fold one message in."""
        self.now = max(self.now, at)
        self.version += not isinstance(message, Status)  # it comes every second, and mostly says the same
        match message:
            case Lap():
                self._lap(message, at)
            case Grew():
                if stream := self.streams.get(message.stream):
                    stream.grew(message, at)
            case Asked():
                self.streams[message.stream] = Stream.of(message, at)
                self._forget_streams()
            case Ended():
                self._ended(message, at)
            case Status():
                self._status(message)
            case Link():
                self._link(message)
            case Event():
                self._happened(message.severity, message.stage, message.message)

    def tick(self, now: float) -> None:
        """Time has passed: what is older than the window is forgotten."""
        self.now = max(self.now, now)
        self.stats.expire(self.now)
        self._settle()

    def lap_of_token(self, stream: Stream, index: int) -> Lap | None:
        """The lap that brought a stream's token, if it is still known."""
        prompt = self.prompt_tokens(stream)
        if stream.sequence is None or prompt is None:
            return None
        return self.log.reaching(stream.sequence, prompt + index)

    def prompt_tokens(self, stream: Stream) -> int | None:
        """How long the stream's prompt is: told at its end, until then seen in its laps."""
        if stream.prompt_tokens is not None or stream.sequence is None:
            return stream.prompt_tokens
        return self.log.prompt_tokens(stream.sequence)

    def live_streams(self) -> int:
        """How many of this dashboard's prompts are unfinished."""
        return sum(stream.running for stream in self.streams.values())

    @property
    def ready(self) -> bool:
        """Whether a ring is there to be looked at."""
        return self.condition in ("idle", "running")

    @property
    def moving(self) -> bool:
        """Whether the last lap is still shown on its way."""
        return self.last_lap_at is not None and self.now - self.last_lap_at < self.shown_for

    @property
    def shown_for(self) -> float:
        """For how many seconds after its return a lap is shown on its way: as long as it took, and never less than LAG_S."""
        return max(LAG_S, self.log.laps[-1].duration_ns / 1e9) if self.log.laps else LAG_S

    @property
    def condition_for(self) -> float:
        """Seconds since the condition last changed."""
        return max(0.0, self.now - self.condition_since)

    def _lap(self, lap: Lap, at: float) -> None:
        if lap.epoch != self._epoch:
            self._epoch = lap.epoch
            self.stats = RingStats()  # another ring may have other stages
            if self.log.laps and lap.started_ns < end_ns(self.log.laps[-1]) - 10**9:
                self.log.clear()  # and, on a machine that was started anew, another clock
        self.log.add(lap)
        self.last_lap_at = at
        self.stats.add(lap, at)
        self._settle()

    def _status(self, status: Status) -> None:
        if self.status is None:
            self._happened("info", -1, f"found the head: {status.model}, {status.dtype}, {status.state}")
        self.status = status
        self._settle()

    def _link(self, link: Link) -> None:
        before, self.link = self.link.phase, link
        if link.phase != before:
            if link.phase == "lost":
                self._happened("error", -1, "the head is gone; reconnecting")
                self._lose_sequences()
            elif link.phase == "connected" and self.status is not None:
                self._happened("info", -1, "the head is back")
                self.status = None  # what the one before it said
            elif link.phase == "refused":
                self._happened("error", -1, link.detail)
        self._settle()

    def _lose_sequences(self) -> None:
        """The head's numbers for its sequences mean nothing to the one that comes after it."""
        self.log.forget_sequences()
        for stream in self.streams.values():
            stream.sequence = None

    def _ended(self, ended: Ended, at: float) -> None:
        stream = self.streams.get(ended.stream)
        if stream is None:
            return
        stream.ended(ended, at)
        if ended.code == "no_head":  # what the head knows of, it tells as an Event
            self._happened("error", -1, f"prompt {stream.number} failed: {ended.detail}")

    def _happened(self, severity: Severity, stage: int, message: str) -> None:
        self.events.append(Happening(self.started + self.now, severity, stage, message))
        self.happened += 1

    def _settle(self) -> None:
        """What the connection and the head's last word amount to."""
        busy = self.last_lap_at is not None and self.now - self.last_lap_at < BUSY_S
        now = condition(self.link, self.status, busy)
        if now != self.condition:
            self.condition, self.condition_since = now, self.now
            self.version += 1

    def _forget_streams(self) -> None:
        ended = [number for number, stream in self.streams.items() if not stream.running]
        for number in ended[: max(0, len(ended) - ENDED_STREAMS)]:
            del self.streams[number]
