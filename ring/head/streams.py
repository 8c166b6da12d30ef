"""One client's generation: its sequence, its text, and when things happened to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ring.head.laps import add_to
from ring.head.sequence import Sequence
from ring.head.text import TextStream
from ring.wire.clients import Finished, FinishReason, LapHop, StageTiming, Timings, Tokens


@dataclass(eq=False, slots=True)
class Stream:
    """What the head keeps of a request. Times are seconds on the head's monotonic clock."""

    client: bytes
    request: int
    sequence: Sequence
    text: TextStream
    eos: frozenset[int]
    stages: list[StageTiming]
    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    pushed: int = 0

    def resume(self, generated: list[int]) -> FinishReason | None:
        """Take tokens that the client has already; returns why the stream ended with them, if it did."""
        reason: FinishReason | None = None
        for token in generated:
            if reason is None:
                self.sequence.extend([token])
                _, reason = self.push(token)
        self.sequence.replay()
        self.first_token = self.last_token = None
        return reason

    def push(self, token: int) -> tuple[Tokens, FinishReason | None]:
        """Take a token that came round; returns what the client is told, and why the stream ends if it does."""
        self.last_token = time.monotonic()
        self.pushed += 1
        if self.first_token is None:
            self.first_token = self.last_token
        ended = token in self.eos
        text = "" if ended else self.text.push(token)
        reason: FinishReason | None = None
        if ended or self.text.stopped:
            reason = "stop"
        elif self.pushed >= self.sequence.max_tokens:
            reason = "length"
        return Tokens(self.request, self.sequence.number, [token], text), reason

    def lap(self, started_ns: int, hops: list[LapHop]) -> None:
        """A microbatch that it was part of came round."""
        if self.admitted is None:
            self.admitted = started_ns / 1e9
        add_to(self.stages, hops)

    def finish(self, reason: FinishReason) -> Finished:
        """The last message, with the timings."""
        now = time.monotonic()
        count = self.pushed
        itl = None
        if self.first_token is not None and self.last_token is not None and count > 1:
            itl = (self.last_token - self.first_token) / (count - 1)
        timings = Timings(
            queued_s=(self.admitted or now) - self.arrived,
            ttft_s=None if self.first_token is None else self.first_token - self.arrived,
            itl_s=itl,
            total_s=now - self.arrived,
            stages=self.stages,
        )
        sampling = self.sequence.sampling
        rest = self.text.finish()
        return Finished(self.request, self.sequence.number, rest, reason, len(self.sequence.prompt), sampling.seed, timings)
