"""The prompts that this dashboard sent, and what came of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ring.wire.clients import Timings
from tui.messages import Asked, Ended, Grew, Options, Outcome

MARKS = 4000


@dataclass(frozen=True, slots=True)
class Mark:
    """One arrival of tokens: which token it began with, its text, when it came."""

    index: int
    text: str
    at: float


@dataclass(slots=True)
class Stream:
    """One prompt and its answer. Times are on the feed's clock, in seconds."""

    number: int
    prompt: str
    options: Options
    asked_at: float
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    sequence: int | None = None
    first_at: float | None = None
    last_at: float = 0.0
    ended_at: float | None = None
    outcome: Outcome | None = None
    code: str = ""
    detail: str = ""
    prompt_tokens: int | None = None
    seed: int | None = None
    timings: Timings | None = None
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=MARKS))

    @classmethod
    def of(cls, asked: Asked, at: float) -> Stream:
        """The stream of a prompt just sent."""
        return cls(asked.stream, asked.prompt, asked.options, at)

    def grew(self, grew: Grew, at: float) -> None:
        """Take new tokens."""
        self.sequence = grew.sequence
        if grew.text:
            self.pieces.append(grew.text)
        if grew.tokens:
            self.marks.append(Mark(self.tokens, grew.text, at))
            self.first_at = at if self.first_at is None else self.first_at
            self.last_at = at
            self.tokens += grew.tokens

    def ended(self, ended: Ended, at: float) -> None:
        """Take the end."""
        self.outcome, self.code, self.detail, self.ended_at = ended.outcome, ended.code, ended.detail, at
        self.prompt_tokens, self.seed, self.timings = ended.prompt_tokens, ended.seed, ended.timings

    @property
    def text(self) -> str:
        """What has been generated."""
        if len(self.pieces) > 64:
            self.pieces = ["".join(self.pieces)]
        return "".join(self.pieces)

    @property
    def running(self) -> bool:
        """Whether more may come."""
        return self.outcome is None

    @property
    def state(self) -> str:
        """One word: prefill, decode, or how it ended."""
        words = {"stop": "done", "length": "max len", "cancelled": "cancelled", "failed": "failed"}
        if self.outcome is not None:
            return words[self.outcome]
        return "prefill" if self.first_at is None else "decode"

    @property
    def ttft(self) -> float | None:
        """Time to first token in seconds: the head's figure once it is known, what was seen here until then."""
        if self.timings is not None:
            return self.timings.ttft_s
        return None if self.first_at is None else self.first_at - self.asked_at

    @property
    def itl(self) -> float | None:
        """Mean inter-token latency in seconds, likewise."""
        if self.timings is not None:
            return self.timings.itl_s
        if self.first_at is None or self.tokens < 2:
            return None
        return (self.last_at - self.first_at) / (self.tokens - 1)

    @property
    def rate(self) -> float | None:
        """Tokens a second while decoding."""
        return 1 / self.itl if self.itl else None
